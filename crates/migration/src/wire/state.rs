//! All device state in one frame, so that one checksum covers it and it is either whole or refused.

use prost::Message;

use super::error::WireError;
use crate::machine::Section;

/// Most sections of one VM.
pub const SECTIONS_MAX: usize = 4096;
/// Longest payload of a section, in bytes. A few bytes of a message may decode to a structure of fifty.
pub const SECTION_BYTES_MAX: usize = 1 << 20;
/// Longest name of a section's device or kind, in bytes. They end up in messages for the operator.
pub const SECTION_NAME_BYTES_MAX: usize = 128;

/// What the STATE frame holds: a header, then the sections, each a length-delimited message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// The state belongs to memory as it is after this round.
    pub last_round: u32,
    pub sections: Vec<Section>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StateHeader {
    #[prost(uint32, tag = "1")]
    last_round: u32,
    #[prost(uint32, tag = "2")]
    sections: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SectionMessage {
    #[prost(string, tag = "1")]
    device: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(uint32, tag = "3")]
    version: u32,
    #[prost(bytes = "vec", tag = "4")]
    payload: Vec<u8>,
}

impl DeviceState {
    /// Encodes the sections without taking them apart again, for use while the VM is stopped.
    pub fn encode(self) -> Vec<u8> {
        let payload_bytes: usize = self.sections.iter().map(|section| section.payload.len() + 128).sum();
        let mut bytes = Vec::with_capacity(payload_bytes);
        let header = StateHeader { last_round: self.last_round, sections: self.sections.len() as u32 };
        bytes.extend(header.encode_length_delimited_to_vec());
        for Section { device, kind, version, payload } in self.sections {
            let message = SectionMessage { device, kind, version: u32::from(version), payload };
            message.encode_length_delimited(&mut bytes).expect("a Vec grows as needed");
        }
        bytes
    }

    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut rest = payload;
        let header = StateHeader::decode_length_delimited(&mut rest).map_err(malformed)?;
        if header.sections as usize > SECTIONS_MAX {
            return Err(malformed(format!(
                "{} sections; at most {SECTIONS_MAX} are allowed",
                header.sections
            )));
        }
        let mut sections = Vec::with_capacity(header.sections as usize);
        for _ in 0..header.sections {
            let message = SectionMessage::decode_length_delimited(&mut rest).map_err(malformed)?;
            message.check()?;
            let version = u16::try_from(message.version).map_err(|_| {
                malformed(format!("version {} of section {}", message.version, message.device))
            })?;
            sections.push(Section {
                device: message.device,
                kind: message.kind,
                version,
                payload: message.payload,
            });
        }
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes are left over", rest.len())));
        }
        Ok(Self { last_round: header.last_round, sections })
    }
}

impl SectionMessage {
    fn check(&self) -> Result<(), WireError> {
        let lengths = [
            ("device's name", self.device.len(), SECTION_NAME_BYTES_MAX),
            ("kind", self.kind.len(), SECTION_NAME_BYTES_MAX),
            ("payload", self.payload.len(), SECTION_BYTES_MAX),
        ];
        match lengths.iter().find(|(_, length, max)| length > max) {
            Some((what, length, max)) => {
                Err(malformed(format!("a section's {what} has {length} bytes; at most {max} are allowed")))
            }
            None => Ok(()),
        }
    }
}

fn malformed(reason: impl ToString) -> WireError {
    WireError::malformed("device state", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = DeviceState> {
        let section =
            ("[a-z/.-]{0,12}", "[a-z]{0,6}", any::<u16>(), prop::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(device, kind, version, payload)| Section { device, kind, version, payload });
        (any::<u32>(), prop::collection::vec(section, 0..6))
            .prop_map(|(last_round, sections)| DeviceState { last_round, sections })
    }

    #[test]
    fn a_section_can_neither_grow_many_times_over_nor_fill_the_operators_screen() {
        let longest = Section {
            device: "d".repeat(SECTION_NAME_BYTES_MAX),
            kind: "k".repeat(SECTION_NAME_BYTES_MAX),
            version: 1,
            payload: vec![0; SECTION_BYTES_MAX],
        };
        let decode =
            |section| DeviceState::decode(&DeviceState { last_round: 1, sections: vec![section] }.encode());
        assert!(decode(longest.clone()).is_ok());
        let more = |text: &str| format!("{text}x");
        for section in [
            Section { device: more(&longest.device), ..longest.clone() },
            Section { kind: more(&longest.kind), ..longest.clone() },
            Section { payload: vec![0; SECTION_BYTES_MAX + 1], ..longest },
        ] {
            let error = decode(section).unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
    }

    proptest! {
        #[test]
        fn device_state_survives_the_wire_and_no_cut_of_it_does(state in state(), cut in any::<prop::sample::Index>()) {
            let bytes = state.clone().encode();
            prop_assert!(DeviceState::decode(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert_eq!(DeviceState::decode(&bytes), Ok(state));
        }

        #[test]
        fn arbitrary_state_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = DeviceState::decode(&bytes);
        }
    }
}
