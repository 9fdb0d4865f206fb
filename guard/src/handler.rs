//! The handler of SIGBUS, and what it tells others.
use crate::{ranges::find, spares};
use libc::{c_int, c_void, siginfo_t};
use std::{
    io, mem,
    os::fd::AsRawFd,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How many ranges have been damaged since the process began; it never falls. When it has changed, a control thread
/// asks each of its mappings whether it was hit. One atomic load.
pub fn damage_count() -> u64 {
    // Partner: the increment in `repair`. Whoever sees the new count also sees that range's flag.
    DAMAGE_COUNT.load(Ordering::Acquire)
}

/// An event that is signalled whenever [`damage_count`] rises, for a control thread that waits in poll(2). There is one
/// in the process: let one thread read it. It does not block.
///
/// # Errors
/// The event could not be made, or the handler not be installed.
pub fn damage_event() -> io::Result<&'static EventFd> {
    Ok(&install()?.event)
}

static DAMAGE_COUNT: AtomicU64 = AtomicU64::new(0);

/// What the handler needs besides the ranges. Made once and never freed.
pub(crate) struct Guard {
    /// Who handled SIGBUS before.
    previous: libc::sigaction,
    event: EventFd,
}

static GUARD: AtomicPtr<Guard> = AtomicPtr::new(ptr::null_mut());

fn guard() -> Option<&'static Guard> {
    // Partner: the store in `install`.
    let guard = GUARD.load(Ordering::Acquire);
    // SAFETY: null, or a box that was leaked whole before its address was stored, and that nobody changes.
    unsafe { guard.as_ref() }
}

/// Installs the handler, once; a failure is tried again by the next call. The handler never takes this lock.
pub(crate) fn install() -> io::Result<&'static Guard> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(guard) = guard() {
        return Ok(guard);
    }
    spares::top_up();
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let previous = current_action()?;
    let guard: &'static Guard = Box::leak(Box::new(Guard { previous, event }));
    // Before the handler is in place, which reads it. Partner: the load in `guard`.
    GUARD.store(ptr::from_ref(guard).cast_mut(), Ordering::Release);
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    set_action(handler as libc::sighandler_t, libc::SA_SIGINFO | libc::SA_ONSTACK)?;
    Ok(guard)
}

fn current_action() -> io::Result<libc::sigaction> {
    // SAFETY: all zeroes is a valid sigaction; the call fills it in.
    unsafe {
        let mut action = mem::zeroed();
        match libc::sigaction(libc::SIGBUS, ptr::null(), &mut action) {
            0 => Ok(action),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn set_action(handler: libc::sighandler_t, flags: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction, which blocks no further signals; the handler is one of the type that
    // the flags name, or SIG_DFL.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        match libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: errno is this thread's own. The kernel passes a siginfo_t; every SIGBUS that it raises for an access
    // has an address there.
    unsafe {
        let errno = *libc::__errno_location();
        let code = (*info).si_code;
        // The page is not there, or its hardware has failed under this access. Other codes are no lost pages.
        let is_lost_page = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
        if !is_lost_page || !repair((*info).si_addr() as usize) {
            pass_on(signal, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

/// Replaces what is lost of the range that has `address`. `false` if there is no such range, or no memory.
fn repair(address: usize) -> bool {
    let Some((slot, range)) = find(address) else {
        return false;
    };
    // Before the memory changes, so that whoever reads a zero of ours finds the flag up. Partner: `is_damaged`.
    let is_news = !slot.damaged.swap(true, Ordering::AcqRel);
    // The file has lost all that follows, too: one fault repairs the range. Start and end are multiples of the page
    // size (for huge pages the kernel takes nothing else), which is a power of two.
    let page = address & !(range.page_size - 1);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: from the page to the end, this is part of a mapping that the faulting thread keeps alive and whose
    // owner has registered it to be replaced; nothing else can be there. Threads that access it at this time wait in
    // the kernel, and find either file or zeroes. A second thread here replaces zeroes by zeroes, or more of the file.
    let replace = || unsafe { libc::mmap(page as *mut c_void, range.end - page, range.protection, flags, -1, 0) };
    let mut replaced = replace() != libc::MAP_FAILED;
    // A part of a mapping becomes one of its own, and there may be no more (vm.max_map_count).
    while !replaced && spares::give_up_one() {
        replaced = replace() != libc::MAP_FAILED;
    }
    if is_news && replaced {
        // Partner: the load in `damage_count`.
        DAMAGE_COUNT.fetch_add(1, Ordering::Release);
        if let Some(guard) = guard() {
            let one = 1u64;
            // A full counter has been signalled anyway.
            // SAFETY: the event is open for ever, and 8 bytes are read.
            unsafe { libc::write(guard.event.as_raw_fd(), ptr::from_ref(&one).cast(), 8) };
        }
    }
    replaced
}

/// Leaves the signal to whoever handled it before.
///
/// # Safety
/// In the handler, with its arguments.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's siginfo_t. The previous handler is of the type that its flags name.
    unsafe {
        // Codes that are not positive come from kill(2) and its like: no access repeats such a signal.
        let is_sent = (*info).si_code <= 0;
        let (handler, flags) = match guard() {
            Some(guard) => (guard.previous.sa_sigaction, guard.previous.sa_flags),
            None => (libc::SIG_DFL, 0),
        };
        match handler {
            libc::SIG_IGN if is_sent => {}
            // The access happens again when we return, and ends the process with the right status.
            libc::SIG_DFL | libc::SIG_IGN => drop(set_action(libc::SIG_DFL, 0)),
            handler if flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(c_int) = mem::transmute(handler);
                handler(signal);
            }
        }
        // The handler that Rust's runtime installs also returns with the default restored, for the access to happen
        // again. Without this, a process that was sent SIGBUS would live on without its guard.
        if is_sent && current_action().is_ok_and(|action| action.sa_sigaction == libc::SIG_DFL) {
            libc::raise(signal);
        }
    }
}
