//! MSI-X: the table of messages, the pending bits, and when a message goes out.
//!
//! ```text
//!              enabled and not masked
//!   signal() ------------------------> message sent
//!       |                                    ^
//!       | masked                             | unmasked (vector or whole function)
//!       +--------> pending bit set ----------+
//! ```

use std::sync::{Arc, Mutex, MutexGuard};

use super::capability::Capability;
use crate::interrupt::MsiSink;

const CAPABILITY_MSIX: u8 = 0x11;
/// Offset of the message control register within the capability.
pub const CONTROL: usize = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;

/// Bytes of one table entry: address (8), data (4), vector control (4).
pub const ENTRY_BYTES: usize = 16;
const VECTOR_MASKED: u32 = 1;

/// The capability of a table with `vectors` entries; both structures lie in BAR `bar`.
pub fn capability(vectors: u16, bar: u8, table_offset: u32, pending_offset: u32) -> Capability {
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    body.extend((table_offset | u32::from(bar)).to_le_bytes());
    body.extend((pending_offset | u32::from(bar)).to_le_bytes());
    let mut writable = vec![0; body.len()];
    writable[..2].copy_from_slice(&(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes());
    Capability { id: CAPABILITY_MSIX, body, writable }
}

/// The MSI-X structures of one function.
pub struct MsiX {
    sink: Arc<dyn MsiSink>,
    state: Mutex<Table>,
}

struct Table {
    control: u16,
    entries: Vec<[u8; ENTRY_BYTES]>,
    /// One bit for each entry.
    pending: u64,
}

/// What [`MsiX::save`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedMsiX {
    /// The table as the guest reads it.
    pub table: Vec<u8>,
    pub pending: u64,
}

/// Most vectors of one function, so that the pending bits fit one word.
pub const VECTORS_MAX: u16 = 64;

impl MsiX {
    /// A disabled table of `vectors` masked entries.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Self {
        assert!((1..=VECTORS_MAX).contains(&vectors));
        Self { sink, state: Mutex::new(Table::new(vectors.into())) }
    }

    /// Number of table entries.
    pub fn vectors(&self) -> u16 {
        self.lock().entries.len() as u16
    }

    /// Whether the guest has switched MSI-X on.
    pub fn enabled(&self) -> bool {
        self.lock().control & CONTROL_ENABLE != 0
    }

    /// Follows the message control register.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        table.control = control;
        self.send_unmasked(&mut table);
    }

    /// Sends the message of `vector`, or remembers it while masked. Unknown vectors are ignored.
    pub fn signal(&self, vector: u16) {
        let mut table = self.lock();
        if usize::from(vector) < table.entries.len() && table.control & CONTROL_ENABLE != 0 {
            table.pending |= 1 << vector;
            self.send_unmasked(&mut table);
        }
    }

    /// Reads the table at `offset`.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        read_bytes(self.lock().entries.as_flattened(), offset, data);
    }

    /// Writes the table at `offset`.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut table = self.lock();
        let bytes = table.entries.as_flattened_mut();
        if let Some(slot) = bytes.get_mut(offset..offset.saturating_add(data.len())) {
            slot.copy_from_slice(data);
        }
        self.send_unmasked(&mut table);
    }

    /// Reads the pending bits at `offset`.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.lock().pending.to_le_bytes(), offset, data);
    }

    /// Back to power-on.
    pub fn reset(&self) {
        let mut table = self.lock();
        *table = Table::new(table.entries.len());
    }

    /// The table and the pending bits.
    pub fn save(&self) -> SavedMsiX {
        let table = self.lock();
        SavedMsiX { table: table.entries.as_flattened().to_vec(), pending: table.pending }
    }

    /// Checks a saved state without taking it over.
    pub fn check(&self, saved: &SavedMsiX) -> Result<(), String> {
        let vectors = self.lock().entries.len();
        if saved.table.len() != vectors * ENTRY_BYTES {
            return Err(format!("the MSI-X table has {} bytes for {vectors} vectors", saved.table.len()));
        }
        if vectors < 64 && saved.pending >> vectors != 0 {
            return Err("a pending bit is set for an MSI-X vector that does not exist".to_owned());
        }
        Ok(())
    }

    /// Takes over a state that [`MsiX::check`] has accepted. Sends nothing.
    pub fn restore(&self, saved: &SavedMsiX, control: u16) {
        let mut table = self.lock();
        table.entries.as_flattened_mut().copy_from_slice(&saved.table);
        table.pending = saved.pending;
        table.control = control;
    }

    fn send_unmasked(&self, table: &mut Table) {
        if table.pending == 0 || table.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE {
            return;
        }
        for (vector, entry) in table.entries.iter().enumerate() {
            let field =
                |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            if table.pending & 1 << vector == 0 || field(12) & VECTOR_MASKED != 0 {
                continue;
            }
            table.pending &= !(1 << vector);
            let address = u64::from(field(4)) << 32 | u64::from(field(0));
            if let Err(error) = self.sink.signal(address, field(8)) {
                // The guest wrote an address that no interrupt controller answers to: its own loss.
                tracing::debug!(vector, address, %error, "MSI-X message not delivered");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.state.lock().expect("no user of an MSI-X table panics")
    }
}

impl Table {
    fn new(vectors: usize) -> Self {
        let mut entry = [0; ENTRY_BYTES];
        entry[12] = VECTOR_MASKED as u8;
        Self { control: 0, entries: vec![entry; vectors], pending: 0 }
    }
}

/// Copies what `from` has at `offset`; the rest reads as zeros.
fn read_bytes(from: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    for (byte, value) in data.iter_mut().zip(from.iter().skip(offset)) {
        *byte = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::MsiLog;

    fn table() -> (Arc<MsiLog>, MsiX) {
        let log = Arc::new(MsiLog::default());
        let msix = MsiX::new(3, log.clone());
        for vector in 0..3u32 {
            let at = vector as usize * ENTRY_BYTES;
            msix.write_table(at, &(0xFEE0_0000 + vector).to_le_bytes());
            msix.write_table(at + 8, &(0x40 + vector).to_le_bytes());
            msix.write_table(at + 12, &0u32.to_le_bytes());
        }
        (log, msix)
    }

    #[test]
    fn a_message_goes_out_only_while_enabled() {
        let (log, msix) = table();
        msix.signal(1);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(log.take(), []);
        msix.signal(1);
        msix.signal(3);
        assert_eq!(log.take(), [(0xFEE0_0001, 0x41)]);
    }

    #[test]
    fn a_masked_message_is_pending_and_goes_out_once_when_unmasked() {
        let (log, msix) = table();
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(2 * ENTRY_BYTES + 12, &1u32.to_le_bytes());
        msix.signal(2);
        msix.signal(2);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!((log.take(), pending[0]), (vec![], 0b100));
        msix.write_table(2 * ENTRY_BYTES + 12, &0u32.to_le_bytes());
        msix.read_pending(0, &mut pending);
        assert_eq!((log.take(), pending[0]), (vec![(0xFEE0_0002, 0x42)], 0));

        msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        msix.signal(0);
        assert_eq!(log.take(), []);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(log.take(), [(0xFEE0_0000, 0x40)]);
    }

    #[test]
    fn a_pending_message_survives_save_and_restore() {
        let (_, msix) = table();
        msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        msix.signal(2);
        let saved = msix.save();
        let (log, fresh) = table();
        fresh.check(&saved).unwrap();
        fresh.restore(&saved, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        assert_eq!(log.take(), []);
        fresh.set_control(CONTROL_ENABLE);
        assert_eq!(log.take(), [(0xFEE0_0002, 0x42)]);
        assert!(fresh.check(&SavedMsiX { pending: 0b1000, ..saved.clone() }).is_err());
        assert!(fresh.check(&SavedMsiX { table: vec![0; 32], ..saved }).is_err());
    }

    #[test]
    fn accesses_outside_the_table_are_harmless() {
        let (_, msix) = table();
        msix.write_table(46, &[1, 2, 3, 4]);
        msix.write_table(usize::MAX, &[1]);
        let mut data = [7; 4];
        msix.read_table(48, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
