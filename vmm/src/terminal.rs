//! Raw mode of the terminal on standard input, undone on every way out of the process.
//!
//! The ways out: [`RawMode`] is dropped; `exit` (called by any code, a plugin included); a panic on any thread; a fatal
//! signal (crash, abort, quit). The shut-down signals are in [`crate::shutdown`], which calls [`restore`] before it
//! ends the process.
use libc::{STDIN_FILENO, c_int, c_void, sigaction, siginfo_t, termios};
use std::{
    io, ptr,
    sync::{
        Once, OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

/// The settings to go back to; null while the terminal is as we found it. Allocated once per entry and never
/// freed, because a signal handler may be reading them on another thread.
static SAVED: AtomicPtr<termios> = AtomicPtr::new(ptr::null_mut());

/// Signals that end the process without running destructors.
const FATAL: [c_int; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGQUIT];

/// What the fatal signals did before us (the standard library reports stack overflows in there).
static PREVIOUS: [OnceLock<sigaction>; FATAL.len()] = [const { OnceLock::new() }; FATAL.len()];

/// Raw mode, until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal on standard input into raw mode: every key, Ctrl-C too, goes to the guest. None if
    /// standard input is not a terminal. Output processing stays on, so that log lines keep their line ends.
    pub(crate) fn enter() -> io::Result<Option<RawMode>> {
        // SAFETY: isatty takes any file descriptor.
        if unsafe { libc::isatty(STDIN_FILENO) } == 0 {
            return Ok(None);
        }
        restore_terminal_at_exit();
        let found = attributes()?;
        let mut raw = found;
        // SAFETY: cfmakeraw only changes the structure it is given.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag |= libc::OPOST;
        SAVED.store(Box::into_raw(Box::new(found)), Ordering::Release);
        // SAFETY: the pointer is to a whole termios that outlives the call.
        if unsafe { libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, &raw) } < 0 {
            let error = io::Error::last_os_error();
            SAVED.store(ptr::null_mut(), Ordering::Release);
            return Err(error);
        }
        Ok(Some(RawMode(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its own settings back, if we changed them. Any thread, any time, as often as one likes;
/// async-signal-safe.
pub(crate) fn restore() {
    // The swap pairs with the store in `enter`: a thread that gets the pointer sees the settings behind it.
    let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
    if !saved.is_null() {
        // SAFETY: a pointer in SAVED comes from `enter` and is never freed.
        unsafe { libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, saved) };
    }
}

/// Whether the terminal on standard input is ours but another job of the shell is in the foreground.
pub(crate) fn is_in_background() -> bool {
    // SAFETY: both take no memory; a descriptor that is not our controlling terminal answers -1.
    let (foreground, ours) = unsafe { (libc::tcgetpgrp(STDIN_FILENO), libc::getpgrp()) };
    foreground >= 0 && foreground != ours
}

fn attributes() -> io::Result<termios> {
    // SAFETY: a termios is integers and arrays of them, for which zeroes are valid; tcgetattr fills it.
    unsafe {
        let mut attributes: termios = std::mem::zeroed();
        match libc::tcgetattr(STDIN_FILENO, &mut attributes) {
            0 => Ok(attributes),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Makes everything that can end the process restore the terminal's settings, once they are changed. Changing them does
/// this, too; code that handles fatal signals in its own way must do it first.
pub fn restore_terminal_at_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        // SAFETY: the function passed stays valid for the life of the process, as the library is never unloaded.
        unsafe { libc::atexit(at_exit) };
        for (signal, previous) in FATAL.iter().zip(&PREVIOUS) {
            // SAFETY: both structures are whole, and the handler only calls async-signal-safe functions. The
            // alternative stack lets it run after a stack overflow as well.
            unsafe {
                let mut found: sigaction = std::mem::zeroed();
                let mut ours: sigaction = std::mem::zeroed();
                ours.sa_sigaction = on_fatal as *const () as usize;
                ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                if libc::sigaction(*signal, ptr::null(), &mut found) == 0 {
                    let _ = previous.set(found);
                    libc::sigaction(*signal, &ours, ptr::null_mut());
                }
            }
        }
    });
}

extern "C" fn at_exit() {
    restore();
}

/// Restores the terminal, then lets the signal do what it did before us.
extern "C" fn on_fatal(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    restore();
    let previous = FATAL.iter().position(|fatal| *fatal == signal).and_then(|index| PREVIOUS[index].get());
    // SAFETY: the kernel passes a whole siginfo; sigaction and raise are async-signal-safe; a null action is
    // never passed because PREVIOUS is filled before the handler is installed.
    unsafe {
        if let Some(previous) = previous {
            libc::sigaction(signal, previous, ptr::null_mut());
        }
        // A fault happens again when the handler returns; a signal that was sent has to be sent again.
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}
