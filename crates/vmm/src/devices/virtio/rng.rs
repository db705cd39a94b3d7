//! virtio-rng: the host's randomness.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, DriverFault, Io, Progress, Source, VirtioDevice};

const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one request; the driver asks again.
const REQUEST_BYTES_MAX: usize = 4096;

/// The device.
pub struct Rng;

impl VirtioDevice for Rng {
    const NAME: &'static str = "virtio-rng";
    const ID: u32 = VIRTIO_ID_RNG;
    /// Encryption controller, other.
    const CLASS: u32 = 0x10_80_00;

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn process(&self, _source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        io.serve_queue(0, QUEUE_SIZE.into(), fill)
    }
}

fn fill(mut chain: Chain<'_>) -> Result<u32, DriverFault> {
    let mut bytes = [0; REQUEST_BYTES_MAX];
    let wanted = chain.writable_bytes().min(REQUEST_BYTES_MAX);
    if wanted == 0 {
        return Err(DriverFault::Request("a request for randomness has no room for it"));
    }
    // SAFETY: the pointer and the length are those of a live buffer.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), wanted, 0) };
    // It fails only when interrupted by a signal; the driver then asks again.
    let got = usize::try_from(got).unwrap_or(0);
    Ok(chain.put(&bytes[..got]) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::*;

    #[test]
    fn requests_are_filled_with_bytes_that_differ() {
        let machine = Machine::empty();
        let plugged = machine.plug(Rng);
        let mut driver = Driver::new(&machine, &plugged);
        driver.start(0);
        for at in [BUFFERS, BUFFERS + 64] {
            driver.submit(0, &[(at, 64, WRITE)]);
            assert_eq!(driver.answer(0).1, 64);
        }
        assert_ne!(driver.get(BUFFERS, 64), driver.get(BUFFERS + 64, 64));
        driver.submit(0, &[(BUFFERS, 64, 0)]);
        driver.wait_for_needs_reset();
    }
}
