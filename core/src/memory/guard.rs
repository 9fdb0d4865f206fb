//! The SIGBUS guard: an owner that shrinks a file that we have mapped must not end this process.
//!
//! An access to a page that its file has lost raises SIGBUS (mmap(2)), which by default ends the process and with it
//! every other device. The handler here looks the address up among the registered ranges, puts zeroed private memory
//! in place of the lost page and of all after it in that range, marks the range as damaged and returns: the access is
//! done again and succeeds. What raises SIGBUS elsewhere goes to whoever handled the signal before, or ends the
//! process as ever. PulseAudio's and systemd's libraries guard their mappings in this manner too.
//!
//! **The handler is async-signal-safe:** it reads atomics, and calls mmap, write, sigaction and raise; it takes no lock,
//! allocates nothing and cannot panic. SA_ONSTACK lets it run where a thread has little stack left. SA_NODEFER is not
//! set: a SIGBUS inside of the handler would be an error of ours, and ends the process at once.
//!
//! **Races.** A thread that faults in a range has been given that range's mapping and holds it until its access is
//! done. So the slot of *that* range was filled before (whatever handed the mapping to the thread orders the two) and
//! is not freed meanwhile. All other slots may change while the handler reads them. Each has a sequence number that is
//! odd during a change: the handler takes start and end only if it finds the same even number before and after, and
//! passes the slot by otherwise, since a slot that changes is not the one that it looks for. It never waits.
//!
//! **Limits.** System calls do not raise SIGBUS: a read(2) into lost memory fails with EFAULT. Code that installs
//! another SIGBUS handler later, and does not pass the signal on, takes the guard away.
use libc::{c_int, c_void, siginfo_t};
use std::{
    io, mem,
    os::fd::AsRawFd,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
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
struct Guard {
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
fn install() -> io::Result<&'static Guard> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(guard) = guard() {
        return Ok(guard);
    }
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
    let replaced = unsafe { libc::mmap(page as *mut c_void, range.end - page, range.protection, flags, -1, 0) }
        != libc::MAP_FAILED;
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

/// A mapping's range as the handler needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// First address; a multiple of the page size.
    pub(super) start: usize,
    /// First address after it; a multiple of the page size.
    pub(super) end: usize,
    /// Size in bytes of the file's pages, a power of two.
    pub(super) page_size: usize,
    /// As for mmap(2).
    pub(super) protection: c_int,
}

/// The guard of one range, which ends when this is dropped: before the range is unmapped, or else the handler would
/// find it where the kernel has put something new.
#[derive(Debug)]
pub(super) struct Registration {
    slot: &'static Slot,
}

impl Registration {
    /// Guards `range`, which has to be mapped already. Installs the handler if it is the first.
    pub(super) fn new(range: Range) -> io::Result<Self> {
        install()?;
        let slot = claim();
        slot.damaged.store(false, Ordering::Relaxed);
        slot.set(range);
        Ok(Registration { slot })
    }

    /// Whether pages of the range were lost.
    pub(super) fn is_damaged(&self) -> bool {
        // Orders the caller's reads of the memory before the look at the flag. Partner: the swap in `repair`, which
        // comes before the memory changes.
        fence(Ordering::Acquire);
        self.slot.damaged.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slot.set(Range { start: 0, end: 0, page_size: 1, protection: 0 });
        // Partner: the exchange in `claim`.
        self.slot.claimed.store(false, Ordering::Release);
    }
}

const SLOTS: usize = 64;

/// Some slots, and where more are. Chunks are appended when slots run out, and stay: the handler may be in any of them.
#[derive(Debug)]
struct Chunk {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Chunk>,
}

static TABLE: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        Chunk { slots: [const { Slot::new() }; SLOTS], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // Partner: the exchange in `append`.
        let next = self.next.load(Ordering::Acquire);
        // SAFETY: null, or a box that was leaked whole before its address was stored.
        unsafe { next.as_ref() }
    }

    /// The chunk after this one, which is made if there is none.
    fn append(&self) -> &'static Chunk {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Chunk::new()));
        // Partner: the load in `next`.
        match self.next.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: ours, and leaked from here on.
            Ok(_) => unsafe { &*new },
            Err(theirs) => {
                // SAFETY: nobody has seen the new one, and theirs is leaked.
                unsafe {
                    drop(Box::from_raw(new));
                    &*theirs
                }
            }
        }
    }
}

/// One range, or none: then start and end are equal.
#[derive(Debug)]
struct Slot {
    /// Whether a registration has it.
    claimed: AtomicBool,
    /// Whether pages of the range were lost.
    damaged: AtomicBool,
    /// Odd while the fields below change.
    sequence: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    page_size: AtomicUsize,
    protection: AtomicI32,
}

impl Slot {
    const fn new() -> Self {
        Slot {
            claimed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page_size: AtomicUsize::new(1),
            protection: AtomicI32::new(0),
        }
    }

    /// Writes the range. Only whoever has claimed the slot may.
    fn set(&self, range: Range) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        // Partner: the acquire fence in `get`: a reader that saw a field of ours sees the odd number as well.
        fence(Ordering::Release);
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.page_size.store(range.page_size, Ordering::Relaxed);
        self.protection.store(range.protection, Ordering::Relaxed);
        // Partner: the first load in `get`: a reader that saw this number sees the fields.
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// Reads the range; `None` if it changes meanwhile.
    fn get(&self) -> Option<Range> {
        // Partner: the last store in `set`.
        let sequence = self.sequence.load(Ordering::Acquire);
        let range = Range {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            page_size: self.page_size.load(Ordering::Relaxed),
            protection: self.protection.load(Ordering::Relaxed),
        };
        // Partner: the fence in `set`.
        fence(Ordering::Acquire);
        let is_whole = sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence;
        is_whole.then_some(range)
    }
}

/// A free slot, which is the caller's now.
fn claim() -> &'static Slot {
    let mut chunk = &TABLE;
    loop {
        for slot in &chunk.slots {
            // Partner: the store when a registration is dropped, after which the slot is as it was left.
            if slot.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return slot;
            }
        }
        chunk = chunk.append();
    }
}

/// The range that has `address`.
fn find(address: usize) -> Option<(&'static Slot, Range)> {
    let mut chunk = Some(&TABLE);
    while let Some(Chunk { slots, .. }) = chunk {
        for slot in slots {
            if let Some(range) = slot.get()
                && (range.start..range.end).contains(&address)
            {
                return Some((slot, range));
            }
        }
        chunk = chunk.and_then(Chunk::next);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_of_many_ranges_and_reuses_their_slots() {
        // Addresses that nothing is mapped at: far above what a process has.
        let range = |index: usize| Range {
            start: (1 << 60) + index * 0x2000,
            end: (1 << 60) + index * 0x2000 + 0x1000,
            page_size: 0x1000,
            protection: libc::PROT_READ,
        };
        let count = 3 * SLOTS;
        let slots = |registrations: &[Registration]| -> Vec<usize> {
            let mut slots: Vec<_> = registrations.iter().map(|one| ptr::from_ref(one.slot).addr()).collect();
            slots.sort_unstable();
            slots.dedup();
            slots
        };
        let register = || (0..count).map(|index| Registration::new(range(index)).expect("registration")).collect();
        let first: Vec<Registration> = register();
        let first_slots = slots(&first);
        assert_eq!(first_slots.len(), count, "each has its own slot");
        for (index, registration) in first.iter().enumerate() {
            let (slot, found) = find(range(index).start + 0xfff).expect("registered");
            assert!(ptr::eq(slot, registration.slot));
            assert_eq!((found.start, found.end), (range(index).start, range(index).end));
            assert!(find(range(index).end).is_none(), "a hole");
        }
        drop(first);
        assert!((0..count).all(|index| find(range(index).start).is_none()), "gone when dropped");
        let second: Vec<Registration> = register();
        assert_eq!(slots(&second), first_slots, "the same slots again: the table does not grow");
    }

    #[test]
    fn passes_a_slot_by_that_is_being_changed() {
        let slot = Slot::new();
        slot.set(Range { start: 0x1000, end: 0x2000, page_size: 0x1000, protection: 0 });
        assert!(slot.get().is_some());
        slot.sequence.fetch_add(1, Ordering::Relaxed);
        assert!(slot.get().is_none());
    }

    #[test]
    fn never_reads_half_of_one_range_and_half_of_another() {
        let slot = Slot::new();
        let ranges = [(0x1000, 0x2000), (0x7000, 0x9000)];
        let set = |(start, end)| slot.set(Range { start, end, page_size: end - start, protection: end as c_int });
        set(ranges[0]);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..1_000_000 {
                    set(ranges[turn % 2]);
                }
                is_done.store(true, Ordering::Release);
            });
            while !is_done.load(Ordering::Acquire) {
                if let Some(Range { start, end, page_size, protection }) = slot.get() {
                    assert!(ranges.contains(&(start, end)), "{start:#x} to {end:#x}");
                    assert_eq!((page_size, protection), (end - start, end as c_int));
                }
            }
        });
        assert!(slot.get().is_some());
    }
}
