//! The secret that proves who may use an API, and the file that holds it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Shortest token accepted, in characters.
const TOKEN_CHARS_MIN: usize = 16;
/// Longest token accepted, in characters.
const TOKEN_CHARS_MAX: usize = 1024;
/// Randomness in a token made here, in bytes.
const TOKEN_RANDOM_BYTES: usize = 32;

/// A bearer token. Prints as `Token(..)`, never as itself.
#[derive(Clone)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "cannot read the token file {path}; copy it from the manager's state directory and check its permissions"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot create the token file {path}; check that its directory exists and is writable")]
    Create { path: PathBuf, source: io::Error },
    #[error(
        "the token file {path} does not hold one line of {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} letters, digits or '-._~+/='; \
         delete it on the manager to have a new one made, or copy it from there again"
    )]
    Malformed { path: PathBuf },
    #[error("cannot read randomness for a new token from /dev/urandom")]
    Random { source: io::Error },
}

impl Token {
    /// A token from its text, or `None` when a header could not carry it or it is too short to be a secret.
    pub fn new(text: &str) -> Option<Self> {
        let good_length = (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&text.len());
        let good_chars = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b));
        (good_length && good_chars).then(|| Self(text.to_owned()))
    }

    /// Reads the token in the file `path`.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let mut text = String::new();
        let read =
            |text: &mut String| File::open(path)?.take(2 * TOKEN_CHARS_MAX as u64).read_to_string(text);
        read(&mut text).map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        Self::new(text.trim()).ok_or_else(|| TokenError::Malformed { path: path.to_owned() })
    }

    /// Reads the token in the file `path`; when there is no such file, makes one that only its owner may read,
    /// with a random token.
    pub fn read_or_create(path: &Path) -> Result<Self, TokenError> {
        match Self::read(path) {
            Err(TokenError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path)
            }
            other => other,
        }
    }

    fn create(path: &Path) -> Result<Self, TokenError> {
        let token = Self::random()?;
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            writeln!(file, "{}", token.0)?;
            file.sync_all()
        };
        match write() {
            Ok(()) => Ok(token),
            // Somebody else made it in between: theirs counts.
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(source) => Err(TokenError::Create { path: path.to_owned(), source }),
        }
    }

    fn random() -> Result<Self, TokenError> {
        let mut bytes = [0; TOKEN_RANDOM_BYTES];
        let read = |bytes: &mut [u8]| File::open("/dev/urandom")?.read_exact(bytes);
        read(&mut bytes).map_err(|source| TokenError::Random { source })?;
        Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// The token itself, for a header.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `other` is this token, in a time that does not tell how much of it is right.
    pub fn matches(&self, other: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), other.as_bytes());
        let differences = ours.iter().zip(theirs).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
        ours.len() == theirs.len() && differences == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_token_file_is_private_and_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let made = Token::read_or_create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Token::read(&path).unwrap().matches(made.expose()));
        assert!(Token::read_or_create(&path).unwrap().matches(made.expose()));
        assert!(!format!("{made:?}").contains(made.expose()));
    }

    #[test]
    fn two_tokens_differ_and_only_the_whole_token_matches() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(!a.matches(b.expose()));
        for wrong in ["", &a.expose()[1..], &format!("{}0", a.expose())] {
            assert!(!a.matches(wrong), "{wrong:?} matched");
        }
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(Token::read(&path).unwrap_err().to_string().contains(path.to_str().unwrap()));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Token::read_or_create(&path), Err(TokenError::Malformed { .. })));
        std::fs::write(&path, "two lines of text\nare no token\n").unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Malformed { .. })));
    }
}
