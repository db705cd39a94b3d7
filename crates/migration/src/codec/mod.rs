//! How page contents are made shorter on the wire, and whether that is worth it.
//!
//! ```text
//!   pages of a record --delta--> what changed since they were last sent --codec--> contents of the frame
//!                     (those that were sent a short while ago)            `- chosen per record by `chooser`
//! ```

pub mod chooser;
pub mod delta;

use std::io;

/// How the contents of a record are packed, as the wire says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Codec {
    /// As they are.
    #[default]
    None = 0,
    /// One LZ4 block, without its length.
    Lz4 = 1,
    /// One zstd frame.
    Zstd = 2,
}

/// What the sender can do with a record, from the cheapest to the one that makes it shortest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Contents leave from where they lie in guest memory.
    None,
    Lz4,
    /// zstd at level 1.
    ZstdFast,
    /// zstd at level 3.
    Zstd,
}

impl Packing {
    pub const ALL: [Self; 4] = [Self::None, Self::Lz4, Self::ZstdFast, Self::Zstd];

    const fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Lz4 => Codec::Lz4,
            Self::ZstdFast | Self::Zstd => Codec::Zstd,
        }
    }

    const fn zstd_level(self) -> i32 {
        if matches!(self, Self::Zstd) { 3 } else { 1 }
    }
}

/// Packs contents; keeps its memory from record to record.
#[derive(Default)]
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    /// Packs `plain`; as it is, with [`Codec::None`], if nothing makes it shorter.
    pub fn pack<'a>(&'a mut self, packing: Packing, plain: &'a [u8]) -> (Codec, &'a [u8]) {
        // LZ4 wants room for the worst case.
        self.packed.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
        let length = match packing.codec() {
            Codec::None => None,
            Codec::Lz4 => lz4_flex::block::compress_into(plain, &mut self.packed).ok(),
            Codec::Zstd => self.zstd(packing.zstd_level(), plain).ok(),
        };
        match length.filter(|length| *length < plain.len()) {
            Some(length) => (packing.codec(), &self.packed[..length]),
            None => (Codec::None, plain),
        }
    }

    fn zstd(&mut self, level: i32, plain: &[u8]) -> io::Result<usize> {
        let compressor = match &mut self.zstd {
            Some(compressor) => compressor,
            none => none.insert(zstd::bulk::Compressor::new(level)?),
        };
        compressor.set_compression_level(level)?;
        compressor.compress_to_buffer(plain, &mut self.packed[..])
    }
}

/// Unpacks contents; keeps its memory from record to record.
#[derive(Default)]
pub struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    plain: Vec<u8>,
}

impl Unpacker {
    /// The `bytes` bytes that were packed, which may then be changed in place; why `packed` is not that, if it is not.
    pub fn unpack(&mut self, codec: Codec, packed: &[u8], bytes: usize) -> Result<&mut [u8], String> {
        self.plain.resize(bytes, 0);
        let length = match codec {
            Codec::None if packed.len() == bytes => {
                self.plain.copy_from_slice(packed);
                bytes
            }
            Codec::None => packed.len(),
            Codec::Lz4 => {
                let length = lz4_flex::block::decompress_into(packed, &mut self.plain);
                length.map_err(|error| format!("not an LZ4 block: {error}"))?
            }
            Codec::Zstd => self.zstd(packed).map_err(|error| format!("not a zstd frame: {error}"))?,
        };
        if length == bytes { Ok(&mut self.plain) } else { Err(format!("{length} bytes instead of {bytes}")) }
    }

    fn zstd(&mut self, packed: &[u8]) -> io::Result<usize> {
        let decompressor = match &mut self.zstd {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(packed, &mut self.plain[..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back_and_is_never_longer(
            seed: u8,
            period in 1usize..300,
            pages in 1usize..40,
            noise in prop::collection::vec(any::<(usize, u8)>(), 0..2000),
        ) {
            let mut plain: Vec<u8> = (0..pages * 4096).map(|at| (at % period) as u8 ^ seed).collect();
            let length = plain.len();
            noise.into_iter().for_each(|(at, byte)| plain[at % length] = byte);
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for packing in Packing::ALL {
                let (codec, packed) = packer.pack(packing, &plain);
                prop_assert!(packed.len() <= plain.len());
                prop_assert_eq!(&*unpacker.unpack(codec, packed, plain.len()).unwrap(), &plain[..], "{:?}", packing);
            }
        }

        #[test]
        fn arbitrary_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut unpacker = Unpacker::default();
            for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
                if let Ok(plain) = unpacker.unpack(codec, &bytes, 4096) {
                    prop_assert_eq!(plain.len(), 4096);
                }
            }
        }
    }

    #[test]
    fn random_bytes_go_as_they_are_and_text_gets_shorter_with_every_step() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..65_536).map(|_| random()).collect();
        let words = ["guest ", "page ", "memory ", "host ", "round ", "moves ", "from ", "there "];
        let text: Vec<u8> = (0..20_000).flat_map(|_| words[usize::from(random() >> 5)].bytes()).collect();
        let mut packer = Packer::default();
        assert!(Packing::ALL.iter().all(|packing| packer.pack(*packing, &noise).0 == Codec::None));
        let lengths = Packing::ALL.map(|packing| packer.pack(packing, &text).1.len());
        assert!(lengths[1] < lengths[0] / 2 && lengths[2] < lengths[1], "{lengths:?}");
    }

    #[test]
    fn more_or_less_than_was_said_is_an_error() {
        let plain = [7; 4096];
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for packing in Packing::ALL {
            let (codec, packed) = packer.pack(packing, &plain);
            for bytes in [4095, 4097, 8192] {
                assert!(unpacker.unpack(codec, packed, bytes).is_err(), "{packing:?} as {bytes}");
            }
            assert!(
                unpacker.unpack(codec, &packed[..packed.len() - 1], 4096).is_err(),
                "{packing:?} cut short"
            );
        }
    }
}
