//! A guest of a few instructions: a PVH image that talks over the serial port.
//!
//! It prints `up` and a newline, then echoes what it is sent, but for single letters:
//! `r` writes the ACPI reset register, `k` pulses the keyboard controller's reset line, `t` causes a triple fault,
//! `o` powers off, and `n` prints a number that grows by one each time, kept in memory.
//!
//! It works with port I/O alone and never enables paging, so it runs on any KVM, however slow its kernel mode is there.

use std::path::{Path, PathBuf};

/// Where the guest is loaded: a page of code, then a page of data.
const LOAD: u32 = 0x10_0000;

std::arch::global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    ".code32",
    "echo_guest_start:",
    "    movw $0x3f8, %dx",
    "    movb $'u', %al",
    "    outb %al, %dx",
    "    movb $'p', %al",
    "    outb %al, %dx",
    "    movb $10, %al",
    "    outb %al, %dx",
    "2:  movw $0x3fd, %dx",
    "    inb %dx, %al",
    "    testb $1, %al",
    "    jz 2b",
    "    movw $0x3f8, %dx",
    "    inb %dx, %al",
    "    cmpb $'r', %al",
    "    je 3f",
    "    cmpb $'k', %al",
    "    je 4f",
    "    cmpb $'t', %al",
    "    je 5f",
    "    cmpb $'o', %al",
    "    je 6f",
    "    cmpb $'n', %al",
    "    je 7f",
    "    outb %al, %dx",
    "    jmp 2b",
    "3:  movw $0x608, %dx",
    "    movb $1, %al",
    "    outb %al, %dx",
    "    jmp 8f",
    "4:  movb $0xfe, %al",
    "    outb %al, $0x64",
    "    jmp 8f",
    "5:  lidt 0x101800",
    "    ud2",
    "6:  movw $0x604, %dx",
    "    movw $0x3400, %ax",
    "    outw %ax, %dx",
    "    jmp 8f",
    "7:  movb 0x101000, %al",
    "    incb 0x101000",
    "    addb $'0', %al",
    "    outb %al, %dx",
    "    jmp 2b",
    "8:  jmp 8b",
    "echo_guest_end:",
    ".code64",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static echo_guest_start: u8;
    static echo_guest_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const echo_guest_start, &raw const echo_guest_end);
    // SAFETY: both symbols are in the same read-only section, the second after the first.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Writes the image into a folder.
pub(crate) fn write(folder: &Path) -> PathBuf {
    let path = folder.join("echo-guest");
    std::fs::write(&path, image()).unwrap();
    path
}

/// An ELF64 image: a segment with the code and one with the PVH note.
fn image() -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let note_at = HEADER + 2 * SEGMENT;
    let note = note();
    let code_at = (note_at + note.len() as u64).next_multiple_of(16);
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    image.extend(1u32.to_le_bytes());
    image.extend([u64::from(LOAD), HEADER, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(0u32.to_le_bytes());
    image.extend([HEADER as u16, SEGMENT as u16, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    segment(&mut image, 1, code_at, LOAD.into(), code().len() as u64, 0x2000);
    segment(&mut image, 4, note_at, 0, note.len() as u64, note.len() as u64);
    image.extend(note);
    image.resize(code_at as usize, 0);
    image.extend(code());
    image
}

fn segment(image: &mut Vec<u8>, kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64) {
    image.extend([kind, 7].iter().flat_map(|word| word.to_le_bytes()));
    image
        .extend([offset, address, address, in_file, in_memory, 4].iter().flat_map(|word| word.to_le_bytes()));
}

/// `XEN_ELFNOTE_PHYS32_ENTRY`: where the guest is entered.
fn note() -> Vec<u8> {
    let mut note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend(b"Xen\0");
    note.extend(LOAD.to_le_bytes());
    note
}
