//! A thread that makes the calls for which the kernel can make none.
//!
//! io_uring hands what would wait to threads of the kernel, a sync always, and makes them when it needs them. They
//! count as threads of this process. If it may have no more (`pids.max`, `ulimit -u`), each of those requests comes
//! back with ECANCELED. So each image has a thread of its own from its open on, which rests until that happens.
use crate::call::Call;
use pollux_abi::block::EIO;
use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, Write},
    os::fd::BorrowedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
};

/// It makes system calls and nothing else.
const STACK_BYTES: usize = 64 << 10;

/// The thread of an image.
pub(crate) struct FallbackThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    is_busy: bool,
    is_closed: bool,
}

/// One call, and where its result goes.
struct Job {
    call: Call,
    index: u32,
    file: Arc<File>,
    results: Arc<Results>,
}

// SAFETY: what the call points to may be used on any thread until its result is there (`FallbackThread::make`).
unsafe impl Send for Job {}

/// What came of a queue's calls.
pub(crate) struct Results {
    list: Mutex<Vec<(u32, i32)>>,
    /// The queue's eventfd, on which its worker may sleep.
    wake: File,
}

/// A queue's calls.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) results: Arc<Results>,
    pub(crate) in_flight: u32,
}

impl Deferred {
    /// `wake` is what the queue's worker sleeps on.
    pub(crate) fn new(wake: BorrowedFd<'_>) -> io::Result<Self> {
        let wake = wake.try_clone_to_owned()?.into();
        Ok(Deferred { results: Arc::new(Results { list: Mutex::default(), wake }), in_flight: 0 })
    }
}

impl Results {
    fn put(&self, index: u32, result: i32) {
        self.lock().push((index, result));
        // After that: a worker that does not find it in the list is woken. EAGAIN: it has been already.
        let _ = (&self.wake).write(&1_u64.to_ne_bytes());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The slots whose calls have ended, and the results.
    pub(crate) fn take(&self) -> Vec<(u32, i32)> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, i32)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FallbackThread {
    /// `[control]`, since it shall run where that thread may, and not on a worker's CPU.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let builder = Builder::new().name("pollux-fallback".into()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || theirs.run())?;
        Ok(FallbackThread { shared, thread: Some(thread) })
    }

    /// Has a call made. Its result, as of a ring's completion, is put to `results` with the slot's `index`.
    ///
    /// # Safety
    /// What the call points to must stay valid until the result is there, or the call was withdrawn.
    pub(crate) unsafe fn make(&self, call: Call, index: u32, file: Arc<File>, results: Arc<Results>) {
        self.shared.lock().jobs.push_back(Job { call, index, file, results });
        self.shared.changed.notify_one();
    }

    /// Takes back the calls that have not begun, and returns their slots.
    pub(crate) fn withdraw(&self, results: &Arc<Results>) -> Vec<u32> {
        let mut withdrawn = Vec::new();
        self.shared.lock().jobs.retain(|job| {
            let is_other = !Arc::ptr_eq(&job.results, results);
            if !is_other {
                withdrawn.push(job.index);
            }
            is_other
        });
        withdrawn
    }
}

impl Shared {
    fn run(&self) {
        let mut line = self.lock();
        while !line.is_closed {
            let Some(job) = line.jobs.pop_front() else {
                line = self.changed.wait(line).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            line.is_busy = true;
            drop(line);
            // Meanwhile the file may have been cut: a write would make what was cut off into a hole.
            let result = if job.call.is_beyond_end(&job.file) {
                -EIO
            } else {
                // SAFETY: whoever handed the call over vouches for its memory.
                unsafe { job.call.perform(&*job.file) }
            };
            job.results.put(job.index, result);
            drop(job);
            line = self.lock();
            line.is_busy = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FallbackThread {
    fn drop(&mut self) {
        let mut line = self.shared.lock();
        line.is_closed = true;
        line.jobs.clear();
        let is_busy = line.is_busy;
        drop(line);
        self.shared.changed.notify_one();
        // In a call it may stay for ever, if the medium does not answer. It ends by itself.
        if let Some(thread) = self.thread.take().filter(|_| !is_busy) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for FallbackThread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FallbackThread")
    }
}

impl fmt::Debug for Results {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Results")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Memory, Transfer};
    use std::os::fd::AsFd;

    #[test]
    fn a_write_that_has_waited_for_the_thread_does_not_make_a_file_longer() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        file.set_len(8192).expect("resized");
        let thread = FallbackThread::start().expect("started");
        let deferred = Deferred::new(tempfile::tempfile().expect("a file").as_fd()).expect("made");
        let mut data = [1_u8; 4096];
        for (index, offset) in [(0, 4096), (1, 4097), (2, 8192)] {
            let memory = Memory::Piece(data.as_mut_ptr());
            let call = Call::Transfer(Transfer {
                is_write: true,
                is_durable: false,
                memory,
                offset,
                length: data.len() as u32,
            });
            // SAFETY: the thread is joined below, before the data go away.
            unsafe { thread.make(call, index, file.clone(), deferred.results.clone()) };
        }
        while deferred.results.lock().len() < 3 {
            std::thread::yield_now();
        }
        drop(thread);
        assert_eq!(deferred.results.take(), [(0, 4096), (1, -EIO), (2, -EIO)]);
        assert_eq!(file.metadata().expect("metadata").len(), 8192);
    }
}
