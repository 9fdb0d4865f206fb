//! Guest memory that is registered with the kernel, so that it need not look up and pin the pages of each request.
//!
//! The regions are registered once, on the control thread, with a ring that does nothing else. A queue's ring, which
//! its worker alone may touch, takes that table over (IORING_REGISTER_CLONE_BUFFERS, Linux 6.12) when it has changed:
//! this pins nothing again, so the worker does not wait for it.
use crate::{
    call::{Call, Memory},
    ring::Ring,
};
use io_uring::IoUring;
use pollux_abi::block::MemoryRegion;
use std::{
    fmt, io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Most bytes of one entry that the kernel takes.
const ENTRY_BYTES: usize = 1 << 30;
/// Places in the table.
const PLACES: usize = 1024;

/// A registered piece of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Piece {
    base: usize,
    /// 0: the place is free.
    length: usize,
}

/// The regions of an instance. `[control]`
pub(crate) struct MemoryRegistry {
    table: Mutex<Table>,
    /// Changes with the table.
    generation: AtomicU64,
}

struct Table {
    ring: IoUring,
    pieces: Vec<Piece>,
}

impl MemoryRegistry {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let ring = IoUring::new(1)?;
        ring.submitter().register_buffers_sparse(PLACES as u32)?;
        let table = Mutex::new(Table { ring, pieces: vec![Piece::default(); PLACES] });
        Ok(Arc::new(MemoryRegistry { table, generation: AtomicU64::new(1) }))
    }

    /// Whether nothing is registered.
    pub(crate) fn is_empty(&self) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.pieces.iter().all(|piece| piece.length == 0)
    }

    /// Registers a region, or nothing of it: requests there work all the same.
    pub(crate) fn add(&self, region: &MemoryRegion) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let result = table.add(region.base.addr(), region.length);
        self.generation.fetch_add(1, Ordering::Release);
        result
    }

    pub(crate) fn remove(&self, region: &MemoryRegion) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.remove(region.base.addr(), region.length);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Table {
    fn add(&mut self, base: usize, length: usize) -> io::Result<()> {
        for start in (0..length).step_by(ENTRY_BYTES) {
            let piece = Piece { base: base + start, length: ENTRY_BYTES.min(length - start) };
            let place = self.pieces.iter().position(|piece| piece.length == 0);
            let result = match place {
                Some(place) => self.set(place, piece),
                None => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            };
            if let Err(error) = result {
                self.remove(base, length);
                return Err(error);
            }
        }
        Ok(())
    }

    fn remove(&mut self, base: usize, length: usize) {
        for place in 0..PLACES {
            let piece = self.pieces[place];
            if piece.length > 0 && piece.base >= base && piece.base - base < length {
                // An entry that is empty cannot fail.
                let _ = self.set(place, Piece::default());
            }
        }
    }

    fn set(&mut self, place: usize, piece: Piece) -> io::Result<()> {
        let vector = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(piece.base), iov_len: piece.length };
        // SAFETY: the memory is a region that the host keeps until it is removed here, or nothing.
        unsafe { self.ring.submitter().register_buffers_update(place as u32, &[vector], None)? };
        self.pieces[place] = piece;
        Ok(())
    }
}

impl fmt::Debug for MemoryRegistry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MemoryRegistry({})", self.generation.load(Ordering::Relaxed))
    }
}

/// A queue's copy of the table. `[worker]`
#[derive(Debug)]
pub(crate) struct RegisteredMemory {
    registry: Arc<MemoryRegistry>,
    /// Of the copy; 0: there is none.
    generation: u64,
    /// Whether the kernel may have a table of the queue's.
    is_cloned: bool,
    /// The pieces and their places, by address.
    pieces: Vec<(Piece, u16)>,
    last: usize,
}

impl RegisteredMemory {
    pub(crate) fn new(registry: Arc<MemoryRegistry>) -> Self {
        RegisteredMemory { registry, generation: 0, is_cloned: false, pieces: Vec::with_capacity(PLACES), last: 0 }
    }

    /// Takes the table over if it has changed. A region that goes away and another one in its place mean two changes
    /// before the first request into the latter, so a stale entry is never used.
    #[inline]
    pub(crate) fn refresh(&mut self, ring: &Ring, polled: Option<&Ring>) {
        // Partner: the Release of `add` and `remove`.
        if self.registry.generation.load(Ordering::Acquire) != self.generation {
            self.take_over(ring, polled);
        }
    }

    #[cold]
    fn take_over(&mut self, ring: &Ring, polled: Option<&Ring>) {
        self.pieces.clear();
        self.last = 0;
        let registry = self.registry.clone();
        // While the control thread registers, requests go without; the next turn looks again.
        let table = match registry.table.try_lock() {
            Ok(table) => table,
            Err(TryLockError::Poisoned(table)) => table.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.generation = 0;
                return;
            }
        };
        self.generation = registry.generation.load(Ordering::Acquire);
        let is_cloned = std::mem::take(&mut self.is_cloned);
        for ring in [Some(ring), polled].into_iter().flatten() {
            let submitter = ring.inner().submitter();
            if is_cloned && submitter.unregister_buffers().is_err() {
                return;
            }
            // Empty tables cannot be cloned, and a kernel before 6.12 does not know how to.
            if submitter.register_buffers_clone(table.ring.as_raw_fd()).is_err() {
                return;
            }
            self.is_cloned = true;
        }
        let filled = table.pieces.iter().zip(0_u16..).filter(|(piece, _)| piece.length > 0);
        self.pieces.extend(filled.map(|(piece, place)| (*piece, place)));
        self.pieces.sort_unstable_by_key(|(piece, _)| piece.base);
    }

    /// The place of the entry that holds all memory of a transfer.
    #[inline]
    pub(crate) fn holding(&mut self, call: &Call) -> Option<u16> {
        let Call::Transfer(transfer) = call else { return None };
        let Memory::Piece(base) = transfer.memory else { return None };
        let (base, length) = (base.addr(), transfer.length as usize);
        let holds = |(piece, _): &(Piece, u16)| {
            let offset = base.wrapping_sub(piece.base);
            offset < piece.length && length <= piece.length - offset
        };
        if let Some(last) = self.pieces.get(self.last)
            && holds(last)
        {
            return Some(last.1);
        }
        let after = self.pieces.partition_point(|(piece, _)| piece.base <= base);
        let index = after.checked_sub(1)?;
        holds(&self.pieces[index]).then(|| {
            self.last = index;
            self.pieces[index].1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::Transfer,
        protocol::{Files, Protocol},
        ring::{Purpose, SetUp},
        testing::Memory as Pages,
    };
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn a_transfer_within_a_region_has_its_place_and_no_other_has() {
        let file = File::open("/dev/zero").expect("it opens");
        let purpose = Purpose {
            set_up: SetUp::Deferred,
            depth: 1,
            polls_device: false,
            operations: Files::OPERATIONS,
            may_clone_buffers: true,
        };
        let Ok(registry) = MemoryRegistry::new() else {
            println!("SKIPPED: this kernel does not register memory");
            return;
        };
        let mut ring = Ring::build(purpose, &[file.as_fd()]).expect("a ring");
        ring.enable().expect("enabled");
        let mut registered = RegisteredMemory::new(registry.clone());
        let pages = Pages::new(4 * 4096);
        registry.add(&pages.region()).expect("registered");
        registered.refresh(&ring, None);
        if registered.pieces.is_empty() {
            println!("SKIPPED: this kernel's rings do not take over another's memory (Linux 6.12)");
            return;
        }
        let place = |registered: &mut RegisteredMemory, at: usize, length: u32| {
            let memory = Memory::Piece(pages.base().wrapping_add(at));
            registered.holding(&Call::Transfer(Transfer {
                is_write: false,
                is_durable: false,
                memory,
                offset: 0,
                length,
            }))
        };
        assert_eq!(place(&mut registered, 0, 4 * 4096), Some(0));
        assert_eq!(place(&mut registered, 3 * 4096, 4096), Some(0));
        assert_eq!(place(&mut registered, 3 * 4096, 4097), None);
        assert_eq!(place(&mut registered, 4 * 4096, 1), None);
        assert_eq!(registered.holding(&Call::Sync), None);
        registry.remove(&pages.region());
        registered.refresh(&ring, None);
        assert_eq!(place(&mut registered, 0, 4096), None);
    }
}
