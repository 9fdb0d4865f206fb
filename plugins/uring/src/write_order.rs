//! The order of writes to a medium whose unit is larger than the guest's block.
//!
//! A write of a part of a unit reads the unit, changes it and writes it back. What another request writes to the unit
//! meanwhile would be undone. So whatever changes a part of a unit has it for itself, over all queues of the image;
//! requests that change whole units do not exclude each other. Who comes first goes first, and nobody is passed by for
//! ever.
//!
//! Guests align what they write to the physical block that they are told of, so parts are rare. While no request for a
//! part is there, those for whole units are only counted. Media whose unit is the guest's block, which nearly all are,
//! have no such order.
use std::{
    fmt,
    fs::File,
    io::Write,
    ops::Range,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// In `WriteOrder::counts`: a request for a part.
const PART: u64 = 1 << 32;
/// In the same: the requests that are only counted.
const COUNTED: u64 = PART - 1;

/// The order of one image.
#[derive(Debug, Default)]
pub(crate) struct WriteOrder {
    /// Requests in flight for whole units that are not in the line, and above them requests for parts that are in it.
    counts: AtomicU64,
    /// In order of arrival: requests for parts, and those for whole units that have come while there was one.
    line: Mutex<Vec<Claim>>,
}

#[derive(Debug)]
struct Claim {
    owner: Arc<Turns>,
    /// The slot of the owner's.
    index: u32,
    bytes: Range<u64>,
    is_part: bool,
    is_granted: bool,
}

/// What a request changes.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Whole units.
    pub(crate) bytes: Range<u64>,
    /// Not all bytes of them.
    pub(crate) is_part: bool,
}

/// What a request holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing: it changes nothing, or there is no order.
    #[default]
    None,
    /// It is counted.
    Counted,
    /// It is in the line.
    InLine,
}

impl WriteOrder {
    /// Asks permission to make a change. Returns what the request holds from now on, and whether it may begin; if not,
    /// the slot comes up in the owner's turns.
    pub(crate) fn enter(&self, owner: &Arc<Turns>, index: u32, change: Change) -> (Hold, bool) {
        if !change.is_part {
            // Partner: the addition of PART below. Either this finds the part, or that one finds this.
            if self.counts.fetch_add(1, Ordering::SeqCst) < PART {
                return (Hold::Counted, true);
            }
            self.uncount();
        }
        let mut line = self.lock();
        if change.is_part {
            self.counts.fetch_add(PART, Ordering::SeqCst);
        }
        let Change { bytes, is_part } = change;
        line.push(Claim { owner: owner.clone(), index, bytes, is_part, is_granted: false });
        let place = line.len() - 1;
        line[place].is_granted = self.may_begin(&line, place);
        (Hold::InLine, line[place].is_granted)
    }

    /// The request has ended. Others may have their turn.
    pub(crate) fn leave(&self, owner: &Arc<Turns>, index: u32, hold: Hold) {
        match hold {
            Hold::None => {}
            Hold::Counted => self.uncount(),
            Hold::InLine => self.remove(|claim| claim.index == index && Arc::ptr_eq(&claim.owner, owner)),
        }
    }

    /// A queue is given up, with so many counted requests, and nothing of it is in flight.
    pub(crate) fn abandon(&self, owner: &Arc<Turns>, counted: u32) {
        (0..counted).for_each(|_| self.uncount());
        self.remove(|claim| Arc::ptr_eq(&claim.owner, owner));
    }

    #[inline]
    fn uncount(&self) {
        let before = self.counts.fetch_sub(1, Ordering::SeqCst);
        if before >= PART && before & COUNTED == 1 {
            self.grant(&mut self.lock());
        }
    }

    fn remove(&self, is_gone: impl Fn(&Claim) -> bool) {
        let mut line = self.lock();
        line.retain(|claim| {
            let is_gone = is_gone(claim);
            if is_gone && claim.is_part {
                self.counts.fetch_sub(PART, Ordering::SeqCst);
            }
            !is_gone
        });
        self.grant(&mut line);
    }

    /// Gives a turn to all who may begin now.
    fn grant(&self, line: &mut [Claim]) {
        for place in 0..line.len() {
            if !line[place].is_granted && self.may_begin(line, place) {
                line[place].is_granted = true;
                line[place].owner.give(line[place].index);
            }
        }
    }

    fn may_begin(&self, line: &[Claim], place: usize) -> bool {
        let claim = &line[place];
        // Where the counted ones write is not known.
        if claim.is_part && self.counts.load(Ordering::SeqCst) & COUNTED > 0 {
            return false;
        }
        !line[..place].iter().any(|earlier| {
            (claim.is_part || earlier.is_part)
                && claim.bytes.start < earlier.bytes.end
                && earlier.bytes.start < claim.bytes.end
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a queue learns whose turn it is.
pub(crate) struct Turns {
    slots: Mutex<Vec<u32>>,
    changed: Condvar,
    /// What the queue's worker sleeps on.
    wake: Option<File>,
}

impl Turns {
    /// Of a queue that makes system calls, and waits.
    pub(crate) fn of_caller() -> Arc<Self> {
        Arc::new(Turns { slots: Mutex::default(), changed: Condvar::new(), wake: None })
    }

    /// Of a queue whose worker sleeps on this eventfd.
    pub(crate) fn of_worker(wake: BorrowedFd<'_>) -> std::io::Result<Arc<Self>> {
        let wake: OwnedFd = wake.try_clone_to_owned()?;
        Ok(Arc::new(Turns { slots: Mutex::default(), changed: Condvar::new(), wake: Some(wake.into()) }))
    }

    fn give(&self, index: u32) {
        self.lock().push(index);
        self.changed.notify_one();
        if let Some(mut wake) = self.wake.as_ref() {
            // After that: a worker that does not find it in the list is woken. EAGAIN: it has been already.
            let _ = wake.write(&1_u64.to_ne_bytes());
        }
    }

    /// The slots whose turn has come.
    pub(crate) fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.lock())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Waits for the turn of the only slot.
    pub(crate) fn wait(&self) {
        let slots = self.changed.wait_while(self.lock(), |slots| slots.is_empty());
        slots.unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Turns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: Range<u64>) -> Change {
        Change { bytes, is_part: false }
    }

    fn part(bytes: Range<u64>) -> Change {
        Change { bytes, is_part: true }
    }

    #[test]
    fn a_part_waits_for_all_that_are_only_counted() {
        let (order, one, other) = (WriteOrder::default(), Turns::of_caller(), Turns::of_caller());
        assert_eq!(order.enter(&one, 1, whole(8192..12288)), (Hold::Counted, true));
        assert_eq!(order.enter(&one, 2, whole(0..4096)), (Hold::Counted, true));
        assert_eq!(order.enter(&other, 7, part(0..4096)), (Hold::InLine, false));
        order.leave(&one, 1, Hold::Counted);
        assert!(other.is_empty());
        // From now on others are in the line, behind it or beside it.
        assert_eq!(order.enter(&one, 3, whole(4096..8192)), (Hold::InLine, true));
        assert_eq!(order.enter(&one, 4, whole(0..8192)), (Hold::InLine, false));
        order.leave(&one, 2, Hold::Counted);
        assert_eq!((other.take(), one.take()), (vec![7], vec![]));
        order.leave(&other, 7, Hold::InLine);
        assert_eq!(one.take(), [4]);
        assert_eq!(order.enter(&one, 5, whole(0..4096)), (Hold::Counted, true), "no part is there any more");
    }

    #[test]
    fn who_comes_first_goes_first() {
        let (order, turns) = (WriteOrder::default(), Turns::of_caller());
        assert_eq!(order.enter(&turns, 0, part(0..4096)), (Hold::InLine, true));
        assert_eq!(order.enter(&turns, 1, part(4096..8192)), (Hold::InLine, true), "another unit");
        for index in 2..5 {
            assert_eq!(order.enter(&turns, index, part(0..8192)), (Hold::InLine, false));
        }
        assert_eq!(order.enter(&turns, 5, whole(0..4096)), (Hold::InLine, false), "it does not pass those before it");
        order.leave(&turns, 0, Hold::InLine);
        assert!(turns.is_empty());
        for index in 1..5 {
            order.leave(&turns, index, Hold::InLine);
            assert_eq!(turns.take(), [index + 1]);
        }
    }

    #[test]
    fn a_queue_that_is_given_up_holds_nobody_up() {
        let (order, given_up, other) = (WriteOrder::default(), Turns::of_caller(), Turns::of_caller());
        order.enter(&given_up, 0, whole(0..4096));
        order.enter(&given_up, 1, part(0..4096));
        assert_eq!(order.enter(&other, 2, part(0..4096)), (Hold::InLine, false));
        order.abandon(&given_up, 1);
        assert_eq!(other.take(), [2]);
        order.leave(&other, 2, Hold::InLine);
        assert_eq!(order.enter(&other, 3, whole(0..4096)), (Hold::Counted, true));
    }
}
