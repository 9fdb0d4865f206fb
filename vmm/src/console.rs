//! What the serial port is connected to, and how keyboard input gets there.
use crate::{
    serial::{Interruptible, Output, SerialPort},
    terminal::{self, RawMode},
};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

/// What the serial port is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleSpec {
    /// Standard output and standard input. A terminal is put into raw mode, so that every key goes to the guest;
    /// Ctrl-A x stops the machine, Ctrl-A Ctrl-A sends a Ctrl-A. A machine in the background of its terminal has no
    /// input.
    #[default]
    Terminal,
    /// Standard output; no input.
    Stdout,
    /// Nothing.
    Null,
    /// A file, made or overwritten; no input. The guest can make it grow without bound. A named pipe with a reader is
    /// bounded: the guest waits when the pipe is full.
    File(PathBuf),
}

/// An opened console. Dropping it gives the terminal its settings back.
pub(crate) struct Console {
    target: Target,
    input: Option<Input>,
    raw_mode: Option<RawMode>,
}

enum Target {
    Null,
    File(File),
}

impl Console {
    pub(crate) fn open(spec: &ConsoleSpec) -> io::Result<Console> {
        let target = match spec {
            ConsoleSpec::Terminal | ConsoleSpec::Stdout => {
                Target::File(io::stdout().as_fd().try_clone_to_owned()?.into())
            }
            ConsoleSpec::Null => Target::Null,
            ConsoleSpec::File(path) => Target::File(create(path)?),
        };
        // The terminal stops a process in its background that reads or sets it.
        let interactive = *spec == ConsoleSpec::Terminal && !terminal::is_in_background();
        let raw_mode = if interactive { RawMode::enter()? } else { None };
        let input = interactive.then(|| Input::new(raw_mode.is_some()));
        Ok(Console { target, input, raw_mode })
    }

    /// Where the serial port of one run writes.
    pub(crate) fn output(&self) -> io::Result<Output> {
        Ok(match &self.target {
            Target::Null => Box::new(io::sink()),
            Target::File(file) => Box::new(Interruptible(file.try_clone()?)),
        })
    }

    /// Gives the terminal its settings back before the console is dropped.
    pub(crate) fn restore_terminal(&mut self) {
        self.raw_mode = None;
    }

    /// What the user types, if anything can be typed.
    pub(crate) fn input(&mut self) -> Option<&mut Input> {
        self.input.as_mut()
    }
}

/// Makes or overwrites a file for output, without waiting for a reader.
fn create(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().write(true).create(true).truncate(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| {
        // The error when a pipe has no reader and the call must not wait for one.
        let what_to_do = if error.raw_os_error() == Some(libc::ENXIO) { ": start what reads it first" } else { "" };
        io::Error::new(error.kind(), format!("{}: {error}{what_to_do}", path.display()))
    })?;
    // From here on a full pipe makes the guest wait instead of losing what it writes.
    // SAFETY: no memory is passed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What to do after input was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Hand it to the guest.
    Bytes,
    /// The user wants the machine to stop.
    Stop,
}

const CTRL_A: u8 = 0x01;
/// How much may wait for a guest that does not read; beyond it, standard input is not read.
const PENDING_MAX: usize = 4096;

/// Standard input on its way to the guest.
#[derive(Debug)]
pub(crate) struct Input {
    pending: VecDeque<u8>,
    ended: bool,
    /// Whether Ctrl-A has its meaning: only for people at a terminal.
    escapes: bool,
    escaped: bool,
}

impl Input {
    fn new(escapes: bool) -> Input {
        Input { pending: VecDeque::new(), ended: false, escapes, escaped: false }
    }

    /// Whether standard input should be waited for.
    pub(crate) fn wants_more(&self) -> bool {
        !self.ended && self.pending.len() < PENDING_MAX
    }

    /// Whether the guest has yet to take something.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads what is there; call it when standard input is readable.
    pub(crate) fn read(&mut self) -> Typed {
        let mut bytes = [0; 256];
        // SAFETY: the pointer and length are those of a live array.
        let count = unsafe { libc::read(libc::STDIN_FILENO, bytes.as_mut_ptr().cast(), bytes.len()) };
        match count {
            1.. => self.accept(&bytes[..count as usize]),
            0 => {
                self.ended = true;
                Typed::Bytes
            }
            _ => {
                let error = io::Error::last_os_error();
                // Anything but "later" will not get better.
                self.ended |= !matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
                Typed::Bytes
            }
        }
    }

    fn accept(&mut self, bytes: &[u8]) -> Typed {
        for &byte in bytes {
            if self.escapes && !self.escaped && byte == CTRL_A {
                self.escaped = true;
                continue;
            }
            if std::mem::take(&mut self.escaped) && (byte == b'x' || byte == b'X') {
                return Typed::Stop;
            }
            self.pending.push_back(byte);
        }
        Typed::Bytes
    }

    /// Hands over what the port takes. False if the port was busy and it has to be tried again.
    pub(crate) fn feed(&mut self, port: &SerialPort) -> bool {
        port.feed(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Typed, Vec<u8>) {
        let mut input = Input::new(true);
        let typed = input.accept(keys);
        (typed, input.pending.into())
    }

    #[test]
    fn keys_go_to_the_guest_ctrl_c_included() {
        assert_eq!(typed(b"ls\r\x03"), (Typed::Bytes, b"ls\r\x03".to_vec()));
    }

    #[test]
    fn ctrl_a_x_stops_and_ctrl_a_twice_sends_one() {
        assert_eq!(typed(b"a\x01x").0, Typed::Stop);
        assert_eq!(typed(b"a\x01\x01x"), (Typed::Bytes, b"a\x01x".to_vec()));
        assert_eq!(typed(b"\x01b"), (Typed::Bytes, b"b".to_vec()));
    }

    #[test]
    fn input_that_is_no_terminal_has_no_escapes() {
        let mut input = Input::new(false);
        assert_eq!(input.accept(b"\x01x"), Typed::Bytes);
        assert_eq!(input.pending, b"\x01x");
    }
}
