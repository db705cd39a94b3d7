//! The disks of a model VM: byte strings, of which a few pages are written at random.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{ArrivingDisks, DiskRange, LeavingDisks, MachineError, PageRange, is_zero, lay_out};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

const PAGE: usize = PAGE_SIZE_BYTES as usize;
/// The disk that does not move is between those that do. The last page of the second is cut short.
const DISKS: [(u32, u64); 2] = [(0, 6 << 20), (2, (1 << 20) + 512)];

pub struct ModelDisks {
    ranges: Vec<DiskRange>,
    images: Mutex<Vec<Vec<u8>>>,
    written: Mutex<PageBitmap>,
    /// Pages that were made zeros although they held nothing else.
    pub zeroed_in_vain: AtomicU64,
    pub flushed: AtomicBool,
    pub full: AtomicBool,
}

impl ModelDisks {
    /// Of a VM whose RAM lies there; all zeros.
    pub fn new(ram: &[PageRange]) -> Self {
        let ranges = lay_out(ram, DISKS);
        let pages: Vec<PageRange> = ranges.iter().map(|disk| disk.range).collect();
        Self {
            images: Mutex::new(DISKS.iter().map(|(_, bytes)| vec![0; *bytes as usize]).collect()),
            written: Mutex::new(PageBitmap::covering(&pages)),
            ranges,
            zeroed_in_vain: AtomicU64::new(0),
            flushed: AtomicBool::new(false),
            full: AtomicBool::new(false),
        }
    }

    /// The guest writes some pages, some of them with zeros.
    pub fn work(&self, random: u64, pages: u64) {
        for step in 0..pages {
            let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(step as u32);
            let disk = (random % 2) as usize;
            let mut images = self.images();
            let image = &mut images[disk];
            let at = (random >> 8) as usize % (image.len() / 512 / 4) * 512;
            let byte = if random.is_multiple_of(5) { 0 } else { (random >> 40) as u8 };
            image[at..at + 512].fill(byte);
            drop(images);
            let page = self.ranges[disk].range.start.0 + (at / PAGE) as u64;
            self.written.lock().unwrap().insert(Gfn(page));
        }
    }

    pub fn harvest(&self, dirty: &mut PageBitmap) {
        let mut written = self.written.lock().unwrap();
        self.ranges.iter().for_each(|disk| written.runs(disk.range).for_each(|run| dirty.insert_range(run)));
        written.clear();
    }

    pub fn is_like(&self, other: &Self) -> bool {
        *self.images() == *other.images()
    }

    fn images(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.images.lock().unwrap()
    }

    fn at(&self, pages: PageRange) -> Result<(usize, usize), MachineError> {
        let holds = |disk: &DiskRange| disk.range.contains(pages.start) && pages.end() <= disk.range.end();
        let index = self.ranges.iter().position(holds).ok_or_else(|| MachineError {
            step: "reaching a disk".into(),
            reason: format!("{pages:?} is not on one disk"),
        })?;
        Ok((index, (pages.start.0 - self.ranges[index].range.start.0) as usize * PAGE))
    }
}

impl LeavingDisks for ModelDisks {
    fn ranges(&self) -> &[DiskRange] {
        &self.ranges
    }

    fn data(&self, within: PageRange, found: &mut Vec<PageRange>) -> Result<(), MachineError> {
        let (disk, at) = self.at(within)?;
        let images = self.images();
        let holes = |page: &Gfn| {
            let start = at + (page.0 - within.start.0) as usize * PAGE;
            let end = (start + PAGE).min(images[disk].len());
            images[disk][start..end].iter().all(|byte| *byte == 0)
        };
        let data = within.gfns().filter(|page| !holes(page));
        found.extend(data.map(|start| PageRange { start, pages: 1 }));
        Ok(())
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let (disk, at) = self.at(PageRange { start: first, pages: (into.len() / PAGE) as u64 })?;
        let images = self.images();
        let end = (at + into.len()).min(images[disk].len());
        into[..end - at].copy_from_slice(&images[disk][at..end]);
        into[end - at..].fill(0);
        Ok(())
    }
}

impl ArrivingDisks for ModelDisks {
    fn ranges(&self) -> &[DiskRange] {
        &self.ranges
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        if self.full.load(Relaxed) {
            return Err(MachineError {
                step: "writing to the disk".into(),
                reason: "no space is left".into(),
            });
        }
        let (disk, at) = self.at(PageRange { start: first, pages: (from.len() / PAGE) as u64 })?;
        let mut images = self.images();
        let end = (at + from.len()).min(images[disk].len());
        images[disk][at..end].copy_from_slice(&from[..end - at]);
        self.flushed.store(false, Relaxed);
        Ok(())
    }

    fn zero(&self, pages: PageRange) -> Result<(), MachineError> {
        let mut now = vec![0; pages.pages as usize * PAGE];
        self.read(pages.start, &mut now)?;
        if is_zero(&now) {
            self.zeroed_in_vain.fetch_add(pages.pages, Relaxed);
            return Ok(());
        }
        self.write(pages.start, &vec![0; now.len()])
    }

    fn flush(&self) -> Result<(), MachineError> {
        self.flushed.store(true, Relaxed);
        Ok(())
    }
}
