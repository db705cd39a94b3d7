//! Text of bounded length, without a heap.

use core::fmt;

/// Up to `N` bytes of text; what does not fit is left off.
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).expect("only whole characters are appended")
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = N - self.length;
        let end =
            (0..=text.len().min(room)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
        self.bytes[self.length..][..end].copy_from_slice(&text.as_bytes()[..end]);
        self.length += end;
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
