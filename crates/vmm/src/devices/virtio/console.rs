//! virtio-console with one port, `hvc0` in Linux: a port of the VM's [`Console`](crate::devices::console::Console).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use prost::Message;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::EventFd;

use super::{Chain, DriverFault, Io, Progress, Source, VirtioDevice};
use crate::devices::console::{self, Port};

const INPUT: usize = 0;
const OUTPUT: usize = 1;
/// Number of queues.
pub const QUEUES: usize = 2;
const QUEUE_SIZES: [u16; QUEUES] = [64, 64];
/// Most input that waits for the guest; more waits at the console.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Most output in one chain, so that none takes long.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Bytes handed to the console at once.
const OUTPUT_BYTES_PER_CALL: usize = 4096;

/// What the host holds of the port, shared with the device.
pub struct ConsolePort {
    console: Arc<console::Console>,
    input: Mutex<VecDeque<u8>>,
    arrived: EventFd,
}

impl ConsolePort {
    /// A port of `console`.
    pub fn new(console: Arc<console::Console>) -> io::Result<Arc<Self>> {
        let arrived = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { console, input: Mutex::new(VecDeque::new()), arrived }))
    }

    /// Offers input from the console; tells how much of it was taken.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut input = self.lock();
        let taken = bytes.len().min(INPUT_BYTES_MAX - input.len());
        input.extend(&bytes[..taken]);
        // A full counter wakes the worker just as well.
        let _ = self.arrived.write(1);
        taken
    }

    /// Input that the guest has not read yet, in bytes.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().expect("no user of the input panics")
    }
}

/// The device.
pub struct Console {
    port: Arc<ConsolePort>,
}

/// What of the device moves with the guest.
#[derive(Clone, PartialEq, Message)]
struct ConsoleState {
    /// Typed, and not read by the guest yet.
    #[prost(bytes = "vec", tag = "1")]
    input: Vec<u8>,
    /// Whether the guest has printed here, and so is typed at here.
    #[prost(bool, tag = "2")]
    in_use: bool,
}

impl Console {
    /// A console whose other end is `port`.
    pub fn new(port: Arc<ConsolePort>) -> Self {
        Self { port }
    }

    fn write_input(&self, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        let queue = &mut io.queues[INPUT];
        let mut input = self.port.lock();
        let mut progress = Progress::More;
        // A driver that keeps offering chains without room must not keep the worker from stopping.
        for _ in 0..QUEUE_SIZES[INPUT] {
            if input.is_empty() {
                progress = Progress::Idle;
                break;
            }
            let Some(mut chain) = queue.pop(io.ram)? else {
                progress = queue.rearm(io.ram)?;
                break;
            };
            let written = chain.put(input.make_contiguous());
            input.drain(..written);
            queue.push(io.ram, &[(chain.head, written as u32)])?;
        }
        if input.is_empty() {
            self.port.console.wake_for_input();
        }
        queue.interrupt(io.ram, io.interrupts)?;
        Ok(progress)
    }

    fn read_output(&self, mut chain: Chain<'_>) -> Result<u32, DriverFault> {
        let mut bytes = [0; OUTPUT_BYTES_PER_CALL];
        let mut left = chain.readable_bytes();
        if left > OUTPUT_BYTES_MAX {
            return Err(DriverFault::Request("more console output at once than any driver has"));
        }
        while left > 0 {
            let part = &mut bytes[..left.min(OUTPUT_BYTES_PER_CALL)];
            chain.take(part)?;
            left -= part.len();
            self.port.console.print(Port::Virtio, part);
        }
        Ok(0)
    }
}

impl VirtioDevice for Console {
    const NAME: &'static str = "virtio-console";
    const ID: u32 = VIRTIO_ID_CONSOLE;
    /// Simple communication controller, other.
    const CLASS: u32 = 0x07_80_00;

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn watched(&self) -> Vec<RawFd> {
        vec![self.port.arrived.as_raw_fd()]
    }

    fn process(&self, source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        match source {
            Source::Queue(OUTPUT) => io.serve_queue(OUTPUT, 1, |chain| self.read_output(chain)),
            _ => self.write_input(io),
        }
    }

    fn reset(&self) {
        self.port.lock().clear();
        self.port.console.set_port(Port::Serial);
    }

    fn save(&self) -> Vec<u8> {
        let input = self.port.lock().iter().copied().collect();
        ConsoleState { input, in_use: self.port.console.port() == Port::Virtio }.encode_to_vec()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        let state =
            ConsoleState::decode(state).map_err(|error| format!("the saved state is damaged: {error}"))?;
        if state.input.len() > INPUT_BYTES_MAX {
            return Err(format!("{} bytes of input are more than a console holds", state.input.len()));
        }
        *self.port.lock() = state.input.into();
        self.port.console.set_port(if state.in_use { Port::Virtio } else { Port::Serial });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::devices::virtio::test_driver::*;

    fn a_port() -> Arc<ConsolePort> {
        ConsolePort::new(Arc::new(console::Console::new().unwrap())).unwrap()
    }

    fn started(machine: &Machine) -> (Arc<ConsolePort>, Plugged<Console>, Driver) {
        let port = a_port();
        let plugged = machine.plug(Console::new(Arc::clone(&port)));
        let mut driver = Driver::new(machine, &plugged);
        driver.start(0);
        (port, plugged, driver)
    }

    #[test]
    fn output_reaches_the_console_in_order() {
        let machine = Machine::empty();
        let (port, _plugged, mut driver) = started(&machine);
        let long: Vec<u8> = (0..10_000u32).map(|index| index as u8).collect();
        for text in [&b"login: "[..], &long, b"$ "] {
            driver.put(BUFFERS, text);
            driver.submit(OUTPUT, &[(BUFFERS, text.len() as u32, 0)]);
            driver.answer(OUTPUT);
        }
        assert_eq!(port.console.take_output(), [&b"login: "[..], &long, b"$ "].concat());
    }

    #[test]
    fn input_waits_for_buffers_and_moves_with_the_guest() {
        let machine = Machine::empty();
        let (port, plugged, mut driver) = started(&machine);
        port.offer(b"typed before");
        port.console.set_port(Port::Virtio);
        let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
        let there_port = a_port();
        let there = next.plug(Console::new(Arc::clone(&there_port)));
        migrate(&plugged, &there);
        assert_eq!(there_port.console.port(), Port::Virtio);
        driver = driver.moved_to(&next, &there);
        there.function.resume().unwrap();
        driver.submit(INPUT, &[(BUFFERS, 5, WRITE)]);
        driver.submit(INPUT, &[(BUFFERS + 16, 64, WRITE)]);
        assert_eq!((driver.answer(INPUT).1, driver.answer(INPUT).1), (5, 7));
        assert_eq!(driver.get(BUFFERS, 5), b"typed");
        assert_eq!(driver.get(BUFFERS + 16, 7), b" before");
        driver.submit(INPUT, &[(BUFFERS, 64, WRITE)]);
        there_port.offer(b"after");
        assert_eq!(driver.answer(INPUT).1, 5);
    }

    #[test]
    fn input_beyond_the_limit_is_not_taken() {
        let port = a_port();
        assert_eq!(port.offer(&[1; INPUT_BYTES_MAX + 1]), INPUT_BYTES_MAX);
        assert_eq!(port.offer(&[2; 10]), 0);
    }
}
