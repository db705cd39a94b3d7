//! The serial port COM1, a 16550A: a port of the [`Console`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use godwit_migration::Section;
use vm_superio::serial::{self, SerialEvents};
use vm_superio::{SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::device::{Device, DeviceError, State};
use crate::devices::console::{Console, Port};

/// First port and how many there are.
pub const BASE: u16 = 0x3f8;
/// See [`BASE`].
pub const PORTS: u64 = 8;
/// The interrupt (GSI), edge triggered.
pub const IRQ: u32 = 4;

const NAME: &str = "serial-com1";

/// The port.
pub struct Serial {
    uart: Mutex<Uart>,
    interrupt: EventFd,
    console: Arc<Console>,
}

struct Uart {
    model: serial::Serial<Interrupt, InputWanted, Output>,
    /// A paused port takes no input, which would change its state.
    paused: bool,
}

/// The registers, and input that the guest has not read yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UartState {
    #[prost(uint32, tag = "1")]
    divisor: u32,
    #[prost(uint32, tag = "2")]
    interrupt_enable: u32,
    #[prost(uint32, tag = "3")]
    interrupt_identification: u32,
    #[prost(uint32, tag = "4")]
    line_control: u32,
    #[prost(uint32, tag = "5")]
    line_status: u32,
    #[prost(uint32, tag = "6")]
    modem_control: u32,
    #[prost(uint32, tag = "7")]
    modem_status: u32,
    #[prost(uint32, tag = "8")]
    scratch: u32,
    #[prost(bytes = "vec", tag = "9")]
    input: Vec<u8>,
}

impl State for UartState {
    const KIND: &'static str = "uart-16550";
    const VERSION: u16 = 1;
}

impl Serial {
    /// A port that signals `interrupt` and talks to `console`.
    pub fn new(interrupt: EventFd, console: Arc<Console>) -> io::Result<Self> {
        let uart = uart(&SerialState::default(), &interrupt, &console)?;
        Ok(Self { uart: Mutex::new(uart), interrupt, console })
    }

    /// Offers input from the console; tells how much of it was taken.
    pub fn offer(&self, input: &[u8]) -> usize {
        let mut uart = self.uart();
        if uart.paused || input.is_empty() || uart.model.fifo_capacity() == 0 {
            return 0;
        }
        uart.model.enqueue_raw_bytes(input).unwrap_or_else(|error| {
            tracing::warn!("serial port: {error}");
            0
        })
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().expect("no user of the serial port panics")
    }

    fn replace(&self, state: &SerialState, paused: bool) -> Result<(), DeviceError> {
        let failed = |error: io::Error| DeviceError { device: NAME.into(), reason: error.to_string() };
        *self.uart() = Uart { paused, ..uart(state, &self.interrupt, &self.console).map_err(failed)? };
        Ok(())
    }
}

fn uart(state: &SerialState, interrupt: &EventFd, console: &Arc<Console>) -> io::Result<Uart> {
    let interrupt = Interrupt(interrupt.try_clone()?);
    let (wanted, output) = (InputWanted(Arc::clone(console)), Output(Arc::clone(console)));
    let model = serial::Serial::from_state(state, interrupt, wanted, output)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Uart { model, paused: false })
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart();
        for (register, byte) in (offset..).zip(data) {
            *byte = uart.model.read(register as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.uart();
        for (register, byte) in (offset..).zip(data) {
            if let Err(error) = uart.model.write(register as u8, *byte) {
                tracing::warn!("serial port: {error}");
            }
        }
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        NAME
    }

    fn pause(&self) -> Result<(), DeviceError> {
        self.uart().paused = true;
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        self.uart().paused = false;
        self.console.wake();
        Ok(())
    }

    fn save(&self) -> Result<Section, DeviceError> {
        let state = self.uart().model.state();
        let saved = UartState {
            divisor: u32::from(state.baud_divisor_high) << 8 | u32::from(state.baud_divisor_low),
            interrupt_enable: state.interrupt_enable.into(),
            interrupt_identification: state.interrupt_identification.into(),
            line_control: state.line_control.into(),
            line_status: state.line_status.into(),
            modem_control: state.modem_control.into(),
            modem_status: state.modem_status.into(),
            scratch: state.scratch.into(),
            input: state.in_buffer,
        };
        Ok(saved.to_section(NAME))
    }

    fn restore(&self, section: &Section) -> Result<(), DeviceError> {
        let saved = UartState::from_section(section)?;
        let refused = |what: &str| DeviceError {
            device: NAME.into(),
            reason: format!("the saved {what} is too large"),
        };
        let byte = |value: u32| u8::try_from(value).map_err(|_| refused("register"));
        let [low, high] = u16::try_from(saved.divisor).map_err(|_| refused("divisor"))?.to_le_bytes();
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: byte(saved.interrupt_enable)?,
            interrupt_identification: byte(saved.interrupt_identification)?,
            line_control: byte(saved.line_control)?,
            line_status: byte(saved.line_status)?,
            modem_control: byte(saved.modem_control)?,
            modem_status: byte(saved.modem_status)?,
            scratch: byte(saved.scratch)?,
            in_buffer: saved.input,
        };
        self.replace(&state, true)
    }

    fn reset(&self) {
        if let Err(error) = self.replace(&SerialState::default(), false) {
            tracing::warn!("{error}");
        }
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct InputWanted(Arc<Console>);

impl SerialEvents for InputWanted {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.wake_for_input();
    }
}

struct Output(Arc<Console>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.print(Port::Serial, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial() -> Serial {
        Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), Arc::new(Console::new().unwrap())).unwrap()
    }

    #[test]
    fn input_that_the_guest_has_not_read_moves_with_it() {
        let source = serial();
        assert_eq!(source.offer(b"hello"), 5);
        source.write(7, &[0x5a]);
        let destination = serial();
        destination.restore(&source.save().unwrap()).unwrap();
        let mut read = [0; 5];
        read.iter_mut().for_each(|byte| destination.read(0, std::slice::from_mut(byte)));
        let mut scratch = [0];
        destination.read(7, &mut scratch);
        assert_eq!((&read, scratch), (b"hello", [0x5a]));
    }

    #[test]
    fn a_paused_port_takes_no_input_and_a_full_one_takes_what_fits() {
        let serial = serial();
        serial.pause().unwrap();
        assert_eq!(serial.offer(b"x"), 0);
        serial.resume().unwrap();
        assert_eq!(serial.offer(&[b'x'; 100]), 64);
        assert_eq!(serial.offer(b"x"), 0);
    }

    #[test]
    fn an_oversized_input_buffer_is_refused() {
        let section = UartState { input: vec![0; 65], ..Default::default() }.to_section(NAME);
        assert!(serial().restore(&section).is_err());
    }
}
