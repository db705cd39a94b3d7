//! Physical memory: who gets which, and the page tables beyond the first 4 GiB. Virtual addresses are physical ones.

use core::sync::atomic::{AtomicU64, Ordering};

use godwit_guest_contract::page::Page;

use crate::start_info::StartInfo;

const PAGE_BYTES: u64 = 4096;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// What boot.s has mapped.
const MAPPED_AT_BOOT: u64 = 4 * GIB;
/// What one table of the third level can map.
const MAPPABLE: u64 = 512 * GIB;

const TABLE: u64 = 0x27; // Present, writable, user, accessed.
const LARGE_PAGE: u64 = 0xe7; // The same, dirty and large.

const REGIONS_MAX: usize = 16;
/// RAM below 4 GiB and above, and one hole more.
const RUNS_MAX: usize = 3;

/// RAM that is not in use yet. What is handed out is never given back.
pub struct Memory {
    regions: [(u64, u64); REGIONS_MAX],
    count: usize,
}

impl Memory {
    /// All RAM behind this kernel.
    pub fn new(info: &StartInfo) -> Self {
        unsafe extern "C" {
            static kernel_end: u8;
        }
        let floor = (&raw const kernel_end) as u64;
        let mut memory = Self { regions: [(0, 0); REGIONS_MAX], count: 0 };
        for (start, length) in info.ram().take(REGIONS_MAX) {
            let (start, end) = (start.max(floor), (start + length).min(MAPPABLE));
            if start < end {
                memory.regions[memory.count] = (start, end);
                memory.count += 1;
            }
        }
        for i in 0..memory.count {
            let (start, end) = memory.regions[i];
            memory.map(start, end);
        }
        memory
    }

    /// The length of all that is left.
    pub fn left(&self) -> u64 {
        self.regions[..self.count].iter().map(|(start, end)| end - start).sum()
    }

    /// Zeroed memory for `count` values, without making one on the stack first.
    ///
    /// # Safety
    /// All-zero bytes are a valid `T`.
    pub unsafe fn zeroed<T>(&mut self, count: usize) -> Option<&'static mut [T]> {
        let address = self.take((count * size_of::<T>()) as u64, align_of::<T>() as u64)?;
        let values = address as *mut T;
        // SAFETY: the memory is RAM, mapped, large enough, aligned and nobody else's.
        unsafe {
            values.write_bytes(0, count);
            Some(core::slice::from_raw_parts_mut(values, count))
        }
    }

    /// Memory for `count` values, made one by one.
    pub fn filled<T>(&mut self, count: usize, make: impl Fn() -> T) -> Option<&'static mut [T]> {
        let address = self.take((count * size_of::<T>()) as u64, align_of::<T>() as u64)?;
        let values = address as *mut T;
        // SAFETY: the memory is RAM, mapped, large enough, aligned and nobody else's; every value is written.
        unsafe {
            (0..count).for_each(|i| values.add(i).write(make()));
            Some(core::slice::from_raw_parts_mut(values, count))
        }
    }

    /// Whole pages, with whatever they hold, from wherever some are left.
    pub fn pages(&mut self, count: usize) -> Option<Pages> {
        let mut pages = Pages { runs: core::array::from_fn(|_| Default::default()) };
        let mut missing = count;
        let mut runs = pages.runs.iter_mut();
        for i in 0..self.count {
            let (start, end) = self.regions[i];
            let left = end.saturating_sub(start.next_multiple_of(PAGE_BYTES)) / PAGE_BYTES;
            let length = missing.min(left as usize);
            if length > 0 {
                let address = take(&mut self.regions[i], length as u64 * PAGE_BYTES, PAGE_BYTES)?;
                // SAFETY: the memory is RAM, mapped, large enough, aligned and nobody else's; any bytes are valid words.
                *runs.next()? = unsafe { core::slice::from_raw_parts_mut(address as *mut Page, length) };
                missing -= length;
            }
        }
        (missing == 0).then_some(pages)
    }

    /// Makes addresses usable, RAM or device registers.
    pub fn map(&mut self, start: u64, end: u64) {
        assert!(end <= MAPPABLE, "{end:#x} is beyond what the page tables reach");
        let mut address = start.max(MAPPED_AT_BOOT) & !(LARGE_PAGE_BYTES - 1);
        while address < end {
            self.map_large_page(address);
            address += LARGE_PAGE_BYTES;
        }
    }

    fn map_large_page(&mut self, address: u64) {
        unsafe extern "C" {
            static pdpt: [AtomicU64; 512];
        }
        // SAFETY: the table in boot.s, which only this function changes.
        let entry = unsafe { &pdpt[(address / GIB) as usize] };
        if entry.load(Ordering::Relaxed) == 0 {
            let table = self.take(PAGE_BYTES, PAGE_BYTES).expect("memory for a page table") as *mut u64;
            // SAFETY: a page of RAM of our own, mapped because regions are taken from the lowest on.
            unsafe { table.write_bytes(0, 512) };
            entry.store(table as u64 | TABLE, Ordering::Release);
        }
        let table = (entry.load(Ordering::Relaxed) & !0xfff) as *const AtomicU64;
        let index = (address / LARGE_PAGE_BYTES % 512) as usize;
        // SAFETY: the table was put there as 512 entries.
        unsafe { &*table.add(index) }.store(address | LARGE_PAGE, Ordering::Release);
    }

    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        self.regions[..self.count].iter_mut().find_map(|region| take(region, bytes, align))
    }
}

fn take((start, end): &mut (u64, u64), bytes: u64, align: u64) -> Option<u64> {
    let address = start.next_multiple_of(align);
    (address + bytes <= *end).then(|| {
        *start = address + bytes;
        address
    })
}

/// Pages of RAM in a few runs, numbered through.
pub struct Pages {
    runs: [&'static mut [Page]; RUNS_MAX],
}

impl Pages {
    pub fn get(&mut self, mut index: usize) -> &mut Page {
        for run in &mut self.runs {
            match index.checked_sub(run.len()) {
                Some(rest) => index = rest,
                None => return &mut run[index],
            }
        }
        panic!("page {index} is behind the last");
    }
}
