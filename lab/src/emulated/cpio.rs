//! Archives in cpio's "newc" format, which the kernel unpacks as its initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fmt::Write as _;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const ALIGNMENT: usize = 4;

/// An archive under construction. Directories come before what they hold.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, (0, 0), content);
    }

    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK, (0, 0), to.as_bytes());
    }

    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("what goes into an initramfs is smaller than 4 GiB");
        let name_length = path.len() as u32 + 1;
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, major, minor, name_length, 0];
        let mut head = String::from("070701");
        for field in fields {
            let _infallible = write!(head, "{field:08X}");
        }
        self.bytes.extend([head.as_bytes(), path.as_bytes(), &[0]].concat());
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format's reader, as the kernel does it.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, length, name_length) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_length - 1].to_vec()).unwrap();
            let start = (110 + name_length).next_multiple_of(ALIGNMENT);
            let content = bytes[start..start + length].to_vec();
            bytes = &bytes[(start + length).next_multiple_of(ALIGNMENT)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn names_and_contents_of_every_length_come_back() {
        let mut archive = Archive::default();
        for length in 0..9 {
            let name = "n".repeat(length + 1);
            archive.file(&name, &vec![length as u8; length]);
        }
        archive.program("init", b"#!");
        archive.link("sh", "busybox");
        let found = entries(&archive.finish());
        for (length, (name, mode, content)) in found.iter().take(9).enumerate() {
            assert_eq!((name.len(), *mode, content), (length + 1, FILE, &vec![length as u8; length]));
        }
        assert_eq!(found[9], ("init".into(), PROGRAM, b"#!".to_vec()));
        assert_eq!(found[10], ("sh".into(), LINK, b"busybox".to_vec()));
    }
}
