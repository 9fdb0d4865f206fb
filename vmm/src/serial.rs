//! The serial port COM1: a 16550 on an I/O APIC line, its output on a writer, its input from the machine thread.
use crate::bus::BusDevice;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, TryLockError},
};
use vm_superio::{
    Trigger,
    serial::{Serial, SerialEvents},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where the guest's output goes.
pub(crate) type Output = Box<dyn Write + Send>;

/// An eventfd that an irqfd turns into an edge on the port's interrupt line.
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Signals when the guest has read all input, so that the machine thread hands over more.
struct Drained(Arc<EventFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Full means readable, which is all that matters.
        let _ = self.0.write(1);
    }
}

/// The serial port. vCPU threads reach it through the port bus, the machine thread brings input.
pub(crate) struct SerialPort {
    device: Mutex<Serial<Line, Drained, Output>>,
    line: Arc<EventFd>,
    drained: Arc<EventFd>,
}

impl SerialPort {
    pub(crate) fn new(output: Output) -> io::Result<SerialPort> {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let drained = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let device = Serial::with_events(Line(line.clone()), Drained(drained.clone()), output);
        Ok(SerialPort { device: Mutex::new(device), line, drained })
    }

    /// What to register as irqfd for the port's line.
    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    /// Readable when the guest has read all input; see [`SerialPort::clear_drained`].
    pub(crate) fn drained_fd(&self) -> RawFd {
        self.drained.as_raw_fd()
    }

    /// Makes [`SerialPort::drained_fd`] unreadable until the guest has read all input again.
    pub(crate) fn clear_drained(&self) {
        // An error means that it was not readable.
        let _ = self.drained.read();
    }

    /// Hands over as much of `input` as the port takes now. False when a vCPU holds the port (it may be stuck
    /// in a write to a full pipe), so that the caller tries again instead of getting stuck with it.
    pub(crate) fn feed(&self, input: &mut VecDeque<u8>) -> bool {
        let mut device = match self.device.try_lock() {
            Ok(device) => device,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let count = device.fifo_capacity().min(input.len());
        if count > 0 {
            let bytes: Vec<u8> = input.drain(..count).collect();
            // In loop-back mode the line is disconnected and what arrives is lost, as on the real thing.
            let _ = device.enqueue_raw_bytes(&bytes);
        }
        true
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut device = self.device.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        data.fill(0xff);
        data[0] = device.read(offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut device = self.device.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // If the output is gone, only the guest's bytes are lost.
        let _ = device.write(offset as u8, data[0]);
    }
}

/// Writes to a file that may block: a pipe, a terminal. A signal loses the byte instead of starting the write again,
/// so that a vCPU whose output blocks can still be stopped.
pub(crate) struct Interruptible(pub(crate) File);

impl Write for Interruptible {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data).map_err(|error| match error.kind() {
            // `write_all` would try again.
            io::ErrorKind::Interrupted => io::Error::other("interrupted"),
            _ => error,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with this lock").write(data)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(port: &SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer() {
        let output = Shared::default();
        let port = SerialPort::new(Box::new(output.clone())).expect("made");
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(*output.0.lock().expect("nobody panics with this lock"), b"hello");
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_in_order() {
        let port = SerialPort::new(Box::new(io::sink())).expect("made");
        port.write(INTERRUPT_ENABLE, &[1]);
        let sent: Vec<u8> = (0..200).collect();
        let mut input: VecDeque<u8> = sent.iter().copied().collect();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            assert!(port.feed(&mut input));
            assert!(port.line().read().is_ok(), "input raises the line");
            while read(&port, LINE_STATUS) & 1 != 0 {
                received.push(read(&port, DATA));
            }
            port.clear_drained();
        }
        assert_eq!(received, sent);
    }
}
