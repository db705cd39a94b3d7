//! Records after the handshake (RFC 8446, section 5.2), in two halves.
//!
//! ```text
//!   23 | 0x0303 | length u16 | AEAD( plaintext | content type ) | tag
//!   `------ additional data -----'   nonce = iv XOR number of the record
//! ```

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_migration::secure::{Open, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Seal, SecureError};
use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::kernel::KernelConnection;
use rustls::{ConnectionTrafficSecrets, Error};

/// Content types and the handshake message that may come after a handshake (RFC 8446, sections 5.1 and 4.6.3).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// KeyUpdate, that does not ask for one in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// The alert that says goodbye.
const CLOSE_NOTIFY: u8 = 0;
/// Records sealed with one key. AES-GCM's limit is 2^24.5 full ones (RFC 8446, section 5.5).
const RECORDS_PER_KEY: u64 = 1 << 23;

/// Where new keys come from.
pub(crate) trait Keys: Send {
    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
}

impl<Data: Send> Keys for KernelConnection<Data> {
    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }
}

/// A key, and the number of the next record under it.
struct Secret {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    number: u64,
}

impl Secret {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that is not known here".into())),
        };
        let unfit = || Error::General("a key of a wrong length".into());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unfit())?;
        let iv = iv.as_ref().try_into().map_err(|_| unfit())?;
        Ok(Self { key: LessSafeKey::new(key), iv, number })
    }

    /// The nonce of the next record, which no other has.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.number.to_be_bytes())
            .for_each(|(byte, number)| *byte ^= number);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals what is sent. Its key is renewed long before it is used up.
pub(crate) struct Sealer {
    secret: Secret,
    keys: Arc<Mutex<dyn Keys>>,
    records_per_key: u64,
}

impl Sealer {
    pub(crate) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        keys: Arc<Mutex<dyn Keys>>,
    ) -> Result<Self, Error> {
        Ok(Self { secret: Secret::new(secrets)?, keys, records_per_key: RECORDS_PER_KEY })
    }

    fn record(
        &mut self,
        kind: u8,
        parts: &mut dyn Iterator<Item = &[u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), SecureError> {
        let start = out.len();
        out.extend_from_slice(&[APPLICATION_DATA, 3, 3, 0, 0]);
        parts.for_each(|part| out.extend_from_slice(part));
        out.push(kind);
        let sealed = out.len() - start - RECORD_HEADER_BYTES + self.secret.key.algorithm().tag_len();
        if sealed + RECORD_HEADER_BYTES > RECORD_BYTES_MAX {
            return Err(SecureError(format!("a record of {sealed} bytes is too long")));
        }
        let (header, plain) = out[start..].split_at_mut(RECORD_HEADER_BYTES);
        // Checked above.
        header[3..].copy_from_slice(&(sealed as u16).to_be_bytes());
        let aad = Aad::from(&*header);
        let nonce = self.secret.nonce();
        let tag = self.secret.key.seal_in_place_separate_tag(nonce, aad, plain);
        let tag = tag.map_err(|_| SecureError("a record could not be encrypted".into()))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn renew(&mut self, out: &mut Vec<u8>) -> Result<(), SecureError> {
        self.record(HANDSHAKE, &mut std::iter::once(&KEY_UPDATE[..]), out)?;
        let next = self.keys.lock().unwrap_or_else(PoisonError::into_inner).next_to_seal();
        self.secret = next.and_then(Secret::new).map_err(|error| SecureError(error.to_string()))?;
        Ok(())
    }
}

impl Seal for Sealer {
    fn seal(&mut self, parts: &mut dyn Iterator<Item = &[u8]>, out: &mut Vec<u8>) -> Result<(), SecureError> {
        if self.secret.number >= self.records_per_key {
            self.renew(out)?;
        }
        self.record(APPLICATION_DATA, parts, out)
    }
}

/// Opens what has arrived.
pub(crate) struct Opener {
    secret: Secret,
    keys: Arc<Mutex<dyn Keys>>,
}

impl Opener {
    pub(crate) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        keys: Arc<Mutex<dyn Keys>>,
    ) -> Result<Self, Error> {
        Ok(Self { secret: Secret::new(secrets)?, keys })
    }

    fn renew(&mut self) -> Result<(), SecureError> {
        let next = self.keys.lock().unwrap_or_else(PoisonError::into_inner).next_to_open();
        self.secret = next.and_then(Secret::new).map_err(|error| SecureError(error.to_string()))?;
        Ok(())
    }
}

impl Open for Opener {
    fn record_bytes(&self, header: [u8; RECORD_HEADER_BYTES]) -> Result<usize, SecureError> {
        let bytes = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[..3] == [APPLICATION_DATA, 3, 3] && bytes <= RECORD_BYTES_MAX {
            return Ok(bytes);
        }
        Err(SecureError("the peer sent something that is not an encrypted record".into()))
    }

    fn open(&mut self, record: &mut [u8]) -> Result<Option<Range<usize>>, SecureError> {
        let (header, sealed) = record.split_at_mut(RECORD_HEADER_BYTES);
        let nonce = self.secret.nonce();
        let inner = self.secret.key.open_in_place(nonce, Aad::from(&*header), sealed);
        let inner = inner.map_err(|_| SecureError("a record was changed on its way".into()))?;
        let kind_at = inner.iter().rposition(|byte| *byte != 0);
        let kind_at = kind_at.ok_or_else(|| SecureError("a record without a type".into()))?;
        match (inner[kind_at], &inner[..kind_at]) {
            (APPLICATION_DATA, plain) => {
                return Ok(Some(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + plain.len()));
            }
            (HANDSHAKE, message) if message == KEY_UPDATE => {}
            (ALERT, [_, CLOSE_NOTIFY]) => return Ok(None),
            (ALERT, [_, alert]) => return Err(SecureError(format!("the peer sent alert {alert}"))),
            (kind, _) => return Err(SecureError(format!("an unexpected record of type {kind}"))),
        }
        self.renew()?;
        Ok(Some(0..0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that follow from their number.
    struct Numbered(u8, u8);

    fn secrets(number: u8) -> (u64, ConnectionTrafficSecrets) {
        let (key, iv) = ([number; 32].into(), [number; NONCE_LEN].into());
        (0, ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv })
    }

    impl Keys for Numbered {
        fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
            self.0 += 1;
            Ok(secrets(self.0))
        }

        fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
            self.1 += 1;
            Ok(secrets(self.1))
        }
    }

    #[test]
    fn keys_are_renewed_before_they_are_used_up_and_the_other_side_follows() {
        let keys = Arc::new(Mutex::new(Numbered(0, 0)));
        let mut sealer = Sealer::new(secrets(0), Arc::clone(&keys) as _).unwrap();
        sealer.records_per_key = 3;
        let mut opener = Opener::new(secrets(0), Arc::clone(&keys) as _).unwrap();
        for number in 0..10u8 {
            let mut sealed = Vec::new();
            sealer.seal(&mut std::iter::once(&[number][..]), &mut sealed).unwrap();
            let mut rest = &mut sealed[..];
            let mut plain = Vec::new();
            while let Some(header) = rest.first_chunk() {
                let (record, after) = rest.split_at_mut(opener.record_bytes(*header).unwrap());
                rest = after;
                let at = opener.open(record).unwrap().unwrap();
                plain.extend_from_slice(&record[at]);
            }
            assert_eq!(plain, [number]);
        }
        let keys = keys.lock().unwrap();
        assert_eq!((keys.0, keys.1), (3, 3));
    }
}
