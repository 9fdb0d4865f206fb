//! The io_uring of one queue, set up for a worker that polls: completions are brought in by the worker's own system
//! calls and by nothing else, and it makes one only when there is something to bring in or to submit.
use io_uring::{Builder, IoUring, cqueue, register::Restriction, squeue, types::Fixed};
use std::{
    fmt, io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{Ordering, fence},
};

/// Most entries of a submission queue that the kernel allows.
pub(crate) const MAXIMUM_DEPTH: u32 = 32768;

/// Most entries of a completion queue that the kernel allows.
const MAXIMUM_COMPLETIONS: u32 = 65536;

/// The medium's place in the ring's table of files.
pub(crate) const MEDIUM: Fixed = Fixed(0);

/// The place of the queue's own open file of it, through which it syncs.
pub(crate) const SYNC_FILE: Fixed = Fixed(1);

// Of linux/io_uring.h; the crate keeps these to itself.
const IORING_UNREGISTER_BUFFERS: u8 = 1;
const IORING_UNREGISTER_FILES: u8 = 3;
const IORING_REGISTER_ENABLE_RINGS: u8 = 12;
const IORING_REGISTER_CLONE_BUFFERS: u8 = 30;
const IORING_REGISTER_IOWQ_AFF: u8 = 17;
const IORING_REGISTER_RING_FDS: libc::c_uint = 20;
const IORING_UNREGISTER_RING_FDS: libc::c_uint = 21;
const IORING_ENTER_GETEVENTS: libc::c_uint = 1;
const IORING_ENTER_REGISTERED_RING: libc::c_uint = 1 << 4;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingSlot {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// How a ring is set up: the best that the kernel knows, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetUp {
    /// Linux 6.1: completions wait until the worker enters, and a flag in memory says that there are some.
    Deferred,
    /// Linux 5.19: the same for completions that interrupts would deliver.
    Cooperative,
    /// Linux 5.11: completions interrupt the worker.
    Interrupting,
}

impl SetUp {
    pub(crate) const ALL: [SetUp; 3] = [SetUp::Deferred, SetUp::Cooperative, SetUp::Interrupting];

    /// What `make` makes with the best that the kernel knows, and which that is.
    pub(crate) fn best<T>(mut make: impl FnMut(SetUp) -> io::Result<T>) -> io::Result<(T, SetUp)> {
        let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
        for set_up in Self::ALL {
            match make(set_up) {
                Ok(made) => return Ok((made, set_up)),
                // The kernel does not know one of the flags.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// What the kernel lacks.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            SetUp::Deferred => None,
            SetUp::Cooperative => Some("DEFER_TASKRUN"),
            SetUp::Interrupting => Some("COOP_TASKRUN"),
        }
    }

    fn apply<S: squeue::EntryMarker, C: cqueue::EntryMarker>(self, builder: &mut Builder<S, C>) {
        // Built on the control thread, the ring gets its single issuer only when the worker enables it.
        builder.setup_r_disabled().setup_clamp().dontfork();
        match self {
            // DEFER_TASKRUN without TASKRUN_FLAG would leave a polling worker blind.
            SetUp::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            SetUp::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            SetUp::Interrupting => {}
        }
    }
}

impl fmt::Display for SetUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            SetUp::Deferred => "SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG, SUBMIT_ALL",
            SetUp::Cooperative => "COOP_TASKRUN, TASKRUN_FLAG, SUBMIT_ALL",
            SetUp::Interrupting => "no flags",
        })
    }
}

/// What a ring is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    pub(crate) set_up: SetUp,
    /// Requests in flight.
    pub(crate) depth: u32,
    /// The worker asks the device whether requests have ended (IOPOLL); no interrupt tells.
    pub(crate) polls_device: bool,
    /// Operations that the ring permits, `IORING_OP_` and so on.
    pub(crate) operations: &'static [u8],
    /// The buffers of another ring may become this one's too.
    pub(crate) may_clone_buffers: bool,
}

/// What the ring does from its enabling on, and nothing else: should somebody get hold of its memory, it opens no
/// files, makes no connections and reads and writes nothing but the medium. (Firecracker, whose idea this is, does the
/// same.)
fn restrictions(purpose: Purpose) -> Vec<Restriction> {
    let mut list: Vec<_> = purpose.operations.iter().map(|&operation| Restriction::sqe_op(operation)).collect();
    list.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    let mut register = vec![IORING_REGISTER_ENABLE_RINGS, IORING_UNREGISTER_FILES, IORING_UNREGISTER_BUFFERS];
    // A kernel knows no restriction for what it does not know. These came with Linux 5.14, 5.18 and 6.12.
    if purpose.set_up != SetUp::Interrupting {
        register.push(IORING_REGISTER_IOWQ_AFF);
        register.extend([IORING_REGISTER_RING_FDS as u8, IORING_UNREGISTER_RING_FDS as u8]);
    }
    if purpose.may_clone_buffers {
        register.push(IORING_REGISTER_CLONE_BUFFERS);
    }
    list.extend(register.into_iter().map(Restriction::register_op));
    list
}

/// One io_uring and the eventfd that wakes its worker.
pub(crate) struct Ring<S: squeue::EntryMarker = squeue::Entry, C: cqueue::EntryMarker = cqueue::Entry> {
    ring: IoUring<S, C>,
    wake: OwnedFd,
    /// What `io_uring_enter` names the ring by: its place in the worker's own table, or its file descriptor.
    enter_fd: u32,
    enter_flags: u32,
    registered: bool,
}

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker> Ring<S, C> {
    /// Makes a ring for `depth` requests in flight on `files`, which are [`MEDIUM`] and [`SYNC_FILE`]. Completions have
    /// room for all of them and more, so they never overflow.
    pub(crate) fn build(purpose: Purpose, files: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let entries = purpose.depth.next_power_of_two();
        let mut builder = IoUring::<S, C>::builder();
        purpose.set_up.apply(builder.setup_cqsize((entries * 4).min(MAXIMUM_COMPLETIONS)));
        if purpose.polls_device {
            builder.setup_iopoll();
        }
        let mut ring = builder.build(entries)?;
        ring.submitter().register_files(&files.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>())?;
        // SAFETY: no memory is passed.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if wake < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let wake = unsafe { OwnedFd::from_raw_fd(wake) };
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();
        ring.submitter().register_restrictions(&mut restrictions(purpose))?;
        let enter_fd = ring.as_raw_fd() as u32;
        Ok(Ring { ring, wake, enter_fd, enter_flags: IORING_ENTER_GETEVENTS, registered: false })
    }

    /// Makes the calling thread the one that submits.
    pub(crate) fn enable(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        // A registered ring saves 80 ns at each system call. Each thread has 16 places for them; without one, the ring
        // goes by its descriptor.
        let mut slot = RingSlot { offset: u32::MAX, reserved: 0, data: self.ring.as_raw_fd() as u64 };
        if self.register_ring(IORING_REGISTER_RING_FDS, &mut slot) {
            self.enter_fd = slot.offset;
            self.enter_flags |= IORING_ENTER_REGISTERED_RING;
            self.registered = true;
        }
        Ok(())
    }

    /// The ring itself, for what is registered with it.
    pub(crate) fn inner(&self) -> &IoUring<S, C> {
        &self.ring
    }

    /// Undoes `enable` as far as it goes, on the same thread. The medium's descriptor is let go of here, since the
    /// kernel takes a closed ring apart later, and the medium would stay busy until then. Not while the kernel holds
    /// requests: it would wait for them without end.
    pub(crate) fn disable(&mut self, is_idle: bool) {
        if self.registered {
            let mut slot = RingSlot { offset: self.enter_fd, reserved: 0, data: 0 };
            self.register_ring(IORING_UNREGISTER_RING_FDS, &mut slot);
            self.enter_fd = self.ring.as_raw_fd() as u32;
            self.enter_flags &= !IORING_ENTER_REGISTERED_RING;
            self.registered = false;
        }
        if is_idle {
            // Fails only on a ring whose table is gone already.
            let _ = self.ring.submitter().unregister_files();
        }
    }

    fn register_ring(&self, operation: libc::c_uint, slot: &mut RingSlot) -> bool {
        let fd = self.ring.as_raw_fd();
        // SAFETY: the kernel reads and writes one slot.
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, ptr::from_mut(slot), 1) == 1 }
    }

    /// Queues an entry for the next [`enter`](Self::enter).
    ///
    /// # Safety
    /// What the entry points to must stay valid until it completes.
    #[inline]
    pub(crate) unsafe fn push(&mut self, entry: &S) {
        // SAFETY: the caller vouches for the entry.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("a ring has an entry for each request in flight");
    }

    /// Whether [`enter`](Self::enter) has anything to do: entries to submit, or completions to bring in.
    #[inline]
    pub(crate) fn wants_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Submits what was pushed and brings in what has completed. Does not wait. What the kernel has no room for now
    /// stays queued.
    pub(crate) fn enter(&mut self) {
        let to_submit = self.queued();
        // The guard around the queue turns this into a failed queue.
        self.call(to_submit).unwrap_or_else(|error| panic!("io_uring_enter: {error}"));
    }

    /// Brings in what has completed and submits nothing: the memory of what is still queued may have other uses by now.
    pub(crate) fn collect(&mut self) -> io::Result<()> {
        self.call(0)
    }

    /// Entries that were pushed and not submitted.
    pub(crate) fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    fn call(&self, to_submit: usize) -> io::Result<()> {
        let no_signals = ptr::null::<libc::sigset_t>();
        // SAFETY: what the entries point to is valid (`push`); no signal mask is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                to_submit as libc::c_uint,
                0 as libc::c_uint,
                self.enter_flags,
                no_signals,
                0_usize,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Out of memory for requests, or interrupted: the next turn tries again.
            Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => Ok(()),
            _ => Err(error),
        }
    }

    /// Takes completions off the ring, at most as many as `room` has places.
    #[inline]
    pub(crate) fn pop<'a>(&mut self, room: &'a mut [MaybeUninit<C>]) -> &'a [C] {
        self.ring.completion().fill(room)
    }

    /// Readable when an armed ring has something to bring in.
    ///
    /// An eventfd rather than the ring's own descriptor: it can be switched off while the worker polls.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Switches the wake-up on before the worker sleeps, and returns whether it must not; or switches it off.
    ///
    /// Now and then it returns true, or the wake-up comes, in vain: the kernel sets the flag and signals after it has
    /// made a completion available, so both may come after the completion was taken.
    pub(crate) fn arm(&mut self, armed: bool) -> bool {
        if !armed {
            self.ring.completion().disable_eventfd();
            return false;
        }
        let mut count = 0_u64;
        // What woke the worker last time is over. An eventfd that is not readable answers EAGAIN, which is as good.
        // SAFETY: eight bytes are read into eight bytes.
        unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
        self.ring.completion().enable_eventfd();
        // Partner: the full barrier with which the kernel adds to its list of completions, before it checks whether the
        // eventfd is switched off (io_req_local_work_add). Either the kernel sees it switched on and signals, or the
        // list that `enter` looks through has the completion.
        fence(Ordering::SeqCst);
        self.enter();
        !self.ring.completion().is_empty() || self.wants_enter()
    }
}

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker> fmt::Debug for Ring<S, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ring({})", self.enter_fd)
    }
}
