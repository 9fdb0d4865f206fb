//! The tasks of a worker, those at rest apart from the others.
//!
//! A task that had nothing to do in [`REST_AFTER`] turns in a row, and can say which word in memory it waits for,
//! rests. It is not called any more; instead the worker looks at that word. So each check of an idle queue costs one
//! cache line of the guest and a quarter of one of the worker, instead of a call and the lines that hold the queue's
//! state. And of many tasks at rest, only some are checked in each turn, in rotation, so that they do not slow down the
//! busy ones: see [`LOOKS`].
//!
//! A task at rest that has named a deadline is polled when that is due: every turn reads the clock then. If no task has
//! named one, this costs a turn nothing: the countdown to the next turn that is measured exists in any case.
use super::{
    Deadline, Task, TaskId,
    deadline::{begin_turn, end_turn},
};
use crate::event::Watch;
use std::sync::mpsc::SyncSender;

/// Turns without work, in a row, after which a task may rest.
pub const REST_AFTER: u32 = 64;
/// Tasks at rest that are checked in each turn, plus one for every four pieces of work that the turn had. So the checks
/// cost a small part of the work, and with `n` tasks at rest a rotation takes at most `n / LOOKS` turns, and about the
/// time of `4 n` requests.
pub const LOOKS: usize = 8;

/// One task.
pub(super) struct Entry {
    pub(super) id: TaskId,
    pub(super) task: Box<dyn Task>,
    idle_turns: u32,
    /// Whether it is being stopped.
    pub(super) leaving: bool,
    /// What waits for its stop.
    pub(super) reply: Option<SyncSender<Option<Box<dyn Task>>>>,
}

/// All tasks of a worker and their turns; the thread itself is elsewhere.
#[derive(Default)]
pub struct Roster {
    /// The first `active` are polled in every turn; the others rest.
    entries: Vec<Entry>,
    active: usize,
    /// What those at rest wait for, at the indices of their entries. Kept apart, so that a check touches little memory.
    watches: Vec<Watch>,
    /// When they want to be polled, likewise.
    deadlines: Vec<Deadline>,
    /// No deadline is due before this.
    earliest: Deadline,
    countdown: Countdown,
    /// The task at rest that is checked next.
    next_look: usize,
    /// The task that is being called, in case it panics.
    current: Option<usize>,
}

/// Turns up to the next one that looks at clocks: the extra work of such a turn costs the others nothing.
struct Countdown {
    left: u32,
    /// The initial value of `left`, and how many turns were counted before.
    set: u32,
    before: u32,
}

impl Default for Countdown {
    fn default() -> Self {
        Countdown { left: 1, set: 1, before: 0 }
    }
}

impl Countdown {
    fn set(&mut self, turns: u32) {
        self.before = self.counted();
        (self.left, self.set) = (turns, turns);
    }

    fn counted(&self) -> u32 {
        self.before + self.set - self.left
    }
}

impl Roster {
    /// Polls each task that is not at rest once, and checks some that are. Returns how much there was to do.
    #[inline(always)]
    pub fn turn(&mut self) -> usize {
        let mut work = 0;
        let mut index = 0;
        while index < self.active {
            self.current = Some(index);
            let entry = &mut self.entries[index];
            let done = entry.task.poll();
            work += done;
            entry.idle_turns = if done > 0 { 0 } else { entry.idle_turns + 1 };
            if entry.idle_turns < REST_AFTER || !self.rest(index) {
                index += 1;
            }
        }
        self.current = None;
        if self.active < self.entries.len() {
            work += self.look(LOOKS + work / 4);
        }
        work
    }

    /// As [`turn`](Self::turn), and polls those at rest whose deadlines are due. Reads the clock if there is any.
    #[cold]
    pub(super) fn turn_by_the_clock(&mut self) -> usize {
        if self.earliest.is_none() {
            return self.turn();
        }
        begin_turn();
        let work = self.turn() + self.poll_due();
        end_turn();
        work
    }

    /// Counts a turn that begins. Returns whether it is one that looks at clocks: to be told of the next such turn by
    /// [`look_again`](Self::look_again), then taken by the clock.
    #[inline(always)]
    pub(super) fn count_turn(&mut self) -> bool {
        self.countdown.left -= 1;
        self.countdown.left == 0
    }

    /// The next turn looks at clocks if a deadline is waited for; without any, the one after `interval` turns that were
    /// counted.
    pub(super) fn look_again(&mut self, interval: u32) {
        let next = if self.earliest.is_none() { interval.saturating_sub(self.turns()).max(1) } else { 1 };
        self.countdown.set(next);
    }

    /// Turns counted since they were last taken.
    pub(super) fn turns(&self) -> u32 {
        self.countdown.counted()
    }

    /// Takes the number of turns counted.
    pub(super) fn take_turns(&mut self) -> u32 {
        let turns = self.turns();
        self.countdown.set(self.countdown.left);
        self.countdown.before = 0;
        turns
    }

    fn poll_due(&mut self) -> usize {
        let mut work = 0;
        if !self.earliest.is_due() {
            return work;
        }
        // Tasks that wake swap places with tasks at the front of the row, which have been checked.
        for index in self.active..self.entries.len() {
            if self.deadlines[index].is_due() {
                let place = self.wake(index);
                work += self.poll_one(place);
            }
        }
        let resting = &self.deadlines[self.active..];
        self.earliest = resting.iter().fold(Deadline::NONE, |earliest, &deadline| earliest.or_earlier(deadline));
        work
    }

    /// The deadline of a task, asked for before a sleep; `Deadline::NONE` if it has none.
    pub(super) fn ask_deadline(&mut self, index: usize) -> Deadline {
        let deadline = self.call(index, |entry| entry.task.deadline()).unwrap_or(Deadline::NONE);
        if index >= self.active && !deadline.is_none() {
            self.deadlines[index] = deadline;
            self.earliest = self.earliest.or_earlier(deadline);
            self.countdown.set(1);
        }
        deadline
    }

    /// Checks this many of those at rest, and polls those that have something to do.
    #[inline]
    fn look(&mut self, looks: usize) -> usize {
        if !(self.active..self.entries.len()).contains(&self.next_look) {
            self.next_look = self.active;
        }
        let mut first = self.next_look;
        let last = (first + looks).min(self.entries.len());
        let mut work = 0;
        while let Some(offset) = self.watches[first..last].iter().position(Watch::has_changed) {
            // The one that takes its place was at the front of the row, and has been checked in this rotation.
            let place = self.wake(first + offset);
            first += offset + 1;
            work += self.poll_one(place);
        }
        self.next_look = last;
        work
    }

    /// Polls one that is not at rest.
    pub(super) fn poll_one(&mut self, index: usize) -> usize {
        self.current = Some(index);
        let work = self.entries[index].task.poll();
        self.current = None;
        work
    }

    /// Puts a task to rest, if it can rest. The one that takes its place must be polled next.
    #[cold]
    fn rest(&mut self, index: usize) -> bool {
        let entry = &mut self.entries[index];
        entry.idle_turns = 0;
        let watch = if entry.leaving { None } else { entry.task.watch() };
        let Some(watch) = watch else { return false };
        let deadline = entry.task.deadline().unwrap_or(Deadline::NONE);
        if deadline.is_due() {
            return false;
        }
        self.active -= 1;
        self.entries.swap(index, self.active);
        self.watches[self.active] = watch;
        self.deadlines[self.active] = deadline;
        if !deadline.is_none() {
            self.earliest = self.earliest.or_earlier(deadline);
            self.countdown.set(1);
        }
        true
    }

    /// Lets a task at rest be polled again. Returns its new place.
    // Out of line: within `look`, it would cost registers even in turns in which no task wakes.
    #[inline(never)]
    pub(super) fn wake(&mut self, index: usize) -> usize {
        if index < self.active {
            return index;
        }
        self.entries.swap(index, self.active);
        self.watches.swap(index, self.active);
        self.deadlines.swap(index, self.active);
        self.watches[self.active] = Watch::NONE;
        self.deadlines[self.active] = Deadline::NONE;
        self.active += 1;
        self.active - 1
    }

    /// Lets all be polled again: what they wait for may have moved. Their order stays.
    pub(super) fn wake_all(&mut self) {
        self.active = self.entries.len();
        self.watches.fill(Watch::NONE);
        self.deadlines.fill(Deadline::NONE);
        self.earliest = Deadline::NONE;
        self.entries.iter_mut().for_each(|entry| entry.idle_turns = 0);
    }

    /// Adds a started task.
    pub fn push(&mut self, id: TaskId, task: Box<dyn Task>) {
        self.wake_all();
        self.entries.push(Entry { id, task, idle_turns: 0, leaving: false, reply: None });
        self.watches.push(Watch::NONE);
        self.deadlines.push(Deadline::NONE);
        self.active += 1;
    }

    pub(super) fn remove(&mut self, index: usize) -> Entry {
        self.wake_all();
        self.active -= 1;
        self.watches.pop();
        self.deadlines.pop();
        self.entries.swap_remove(index)
    }

    /// Calls a task, which may panic.
    pub(super) fn call<R>(&mut self, index: usize, call: impl FnOnce(&mut Entry) -> R) -> R {
        self.current = Some(index);
        let result = call(&mut self.entries[index]);
        self.current = None;
        result
    }

    /// The task that was being called when something panicked.
    pub(super) fn take_current(&mut self) -> Option<usize> {
        self.current.take()
    }

    pub(super) fn position(&self, id: TaskId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.id == id)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of tasks at rest.
    pub fn resting(&self) -> usize {
        self.entries.len() - self.active
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{SleepFds, deadline::testing as clock};
    use std::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicU16, AtomicUsize, Ordering},
        },
        time::Duration,
    };

    /// A ring of which only the index is there, and how often it was polled.
    #[derive(Default)]
    struct Ring {
        available: AtomicU16,
        polls: AtomicUsize,
        can_rest: bool,
    }

    struct Model(Arc<Ring>, u16);

    impl Task for Model {
        fn name(&self) -> &str {
            "model"
        }
        fn start(&mut self) -> Result<(), String> {
            Ok(())
        }
        fn poll(&mut self) -> usize {
            self.0.polls.fetch_add(1, Ordering::Relaxed);
            let available = self.0.available.load(Ordering::Acquire);
            usize::from(available.wrapping_sub(std::mem::replace(&mut self.1, available)))
        }
        #[allow(unsafe_code)]
        fn watch(&self) -> Option<Watch> {
            // SAFETY: the task keeps the ring.
            self.0.can_rest.then(|| unsafe { Watch::new(self.0.available.as_ptr(), self.1) })
        }
        fn begin_stop(&mut self) {}
        fn is_stopped(&self) -> bool {
            true
        }
        fn finish(&mut self) -> bool {
            true
        }
        fn abandon(&mut self) -> bool {
            true
        }
        fn sleep_fds(&self) -> SleepFds {
            SleepFds::default()
        }
        fn arm(&mut self) -> bool {
            false
        }
        fn disarm(&mut self) {}
    }

    fn roster(count: usize, can_rest: bool) -> (Roster, Vec<Arc<Ring>>) {
        let mut roster = Roster::default();
        let rings = (0..count).map(|_| Arc::new(Ring { can_rest, ..Ring::default() })).collect::<Vec<_>>();
        for (index, ring) in rings.iter().enumerate() {
            roster.push(TaskId::numbered(index as u64), Box::new(Model(ring.clone(), 0)));
        }
        (roster, rings)
    }

    fn polls(ring: &Ring) -> usize {
        ring.polls.load(Ordering::Relaxed)
    }

    #[test]
    fn those_without_work_rest_and_are_not_called_any_more() {
        let (mut roster, rings) = roster(20, true);
        let turns = 2 * REST_AFTER as usize;
        for _ in 0..turns {
            rings[7].available.fetch_add(1, Ordering::Release);
            assert_eq!(roster.turn(), 1);
        }
        assert_eq!(roster.resting(), 19);
        for (index, ring) in rings.iter().enumerate() {
            assert_eq!(polls(ring), if index == 7 { turns } else { REST_AFTER as usize }, "ring {index}");
        }
    }

    #[test]
    fn who_cannot_say_what_it_waits_for_is_polled_for_ever() {
        let (mut roster, rings) = roster(3, false);
        (0..1000).for_each(|_| assert_eq!(roster.turn(), 0));
        assert_eq!(roster.resting(), 0);
        assert!(rings.iter().all(|ring| polls(ring) == 1000));
    }

    #[test]
    fn few_at_rest_are_served_in_the_very_next_turn() {
        let (mut roster, rings) = roster(LOOKS, true);
        (0..REST_AFTER).for_each(|_| assert_eq!(roster.turn(), 0));
        assert_eq!(roster.resting(), LOOKS);
        for ring in &rings {
            ring.available.fetch_add(3, Ordering::Release);
            assert_eq!(roster.turn(), 3);
        }
        assert_eq!(roster.resting(), 0);
    }

    #[test]
    fn of_many_at_rest_each_is_served_within_two_rotations_whatever_the_others_do() {
        let (mut roster, rings) = roster(200, true);
        let mut state = 1u32;
        let mut waits = vec![None::<usize>; rings.len()];
        for turn in 0..20_000usize {
            // Bursts in some turns, so that places change all the time; pauses in which they come to rest again.
            for _ in 0..if turn % 300 < 100 { 3 } else { 0 } {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let index = (state >> 16) as usize % rings.len();
                if waits[index].is_none() {
                    waits[index] = Some(turn);
                    rings[index].available.fetch_add(1, Ordering::Release);
                }
            }
            let before: Vec<usize> = rings.iter().map(|ring| polls(ring)).collect();
            roster.turn();
            for (index, wait) in waits.iter_mut().enumerate().filter(|(_, wait)| wait.is_some()) {
                if polls(&rings[index]) > before[index] {
                    *wait = None;
                }
                assert!(
                    wait.is_none_or(|since| turn - since < 2 * rings.len() / LOOKS),
                    "ring {index} waits in turn {turn}"
                );
            }
        }
        assert!(roster.resting() > 0);
    }

    #[test]
    fn one_can_be_removed_whatever_its_place_is() {
        let (mut roster, rings) = roster(5, true);
        (0..REST_AFTER).for_each(|_| assert_eq!(roster.turn(), 0));
        assert_eq!(roster.resting(), 5);
        let index = roster.position(TaskId::numbered(2)).expect("it is there");
        roster.remove(index);
        assert_eq!((roster.len(), roster.resting()), (4, 0));
        for ring in &rings {
            ring.available.fetch_add(1, Ordering::Release);
        }
        assert_eq!(roster.turn(), 4);
    }
    /// A task that waits for times and nothing else: it adds up how often it was called when one had come.
    #[derive(Default)]
    struct Waiting {
        deadline: Mutex<Option<Deadline>>,
        polls: AtomicUsize,
        expired: AtomicUsize,
    }

    struct Waiter(Arc<Waiting>);

    impl Task for Waiter {
        fn name(&self) -> &str {
            "waiter"
        }
        fn start(&mut self) -> Result<(), String> {
            Ok(())
        }
        fn poll(&mut self) -> usize {
            self.0.polls.fetch_add(1, Ordering::Relaxed);
            let mut deadline = self.0.deadline.lock().expect("nobody panics");
            let is_due = deadline.is_some_and(Deadline::is_due);
            if is_due {
                *deadline = None;
                self.0.expired.fetch_add(1, Ordering::Relaxed);
            }
            usize::from(is_due)
        }
        fn watch(&self) -> Option<Watch> {
            Some(Watch::nothing())
        }
        fn deadline(&self) -> Option<Deadline> {
            *self.0.deadline.lock().expect("nobody panics")
        }
        fn begin_stop(&mut self) {}
        fn is_stopped(&self) -> bool {
            true
        }
        fn finish(&mut self) -> bool {
            true
        }
        fn abandon(&mut self) -> bool {
            true
        }
        fn sleep_fds(&self) -> SleepFds {
            SleepFds::default()
        }
        fn arm(&mut self) -> bool {
            false
        }
        fn disarm(&mut self) {}
    }

    /// A turn as the worker's loop has it.
    fn turn(roster: &mut Roster) -> usize {
        if !roster.count_turn() {
            return roster.turn();
        }
        roster.look_again(251);
        roster.turn_by_the_clock()
    }

    const START_NS: u64 = 1_000_000_000;

    /// Waiters at rest among so many rings that rest as well.
    fn waiters(waits_us: &[u64], rings: usize) -> (Roster, Vec<Arc<Waiting>>) {
        clock::set(START_NS);
        let (mut roster, _) = roster(rings, true);
        let mut waiters = Vec::new();
        for (index, &wait) in waits_us.iter().enumerate() {
            let deadline = Mutex::new(Some(Deadline::after(Duration::from_micros(wait))));
            let waiting = Arc::new(Waiting { deadline, ..Waiting::default() });
            roster.push(TaskId::numbered((rings + index) as u64), Box::new(Waiter(waiting.clone())));
            waiters.push(waiting);
        }
        (0..REST_AFTER).for_each(|_| _ = turn(&mut roster));
        assert_eq!(roster.resting(), rings + waits_us.len());
        (roster, waiters)
    }

    fn expired(waiters: &[Arc<Waiting>]) -> Vec<usize> {
        waiters.iter().map(|waiter| waiter.expired.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_task_at_rest_is_polled_in_the_first_turn_after_its_deadline_and_not_before() {
        let (mut roster, waiters) = waiters(&[300, 100, 100, 200], 200);
        for (now_us, expected) in
            [(50, [0, 0, 0, 0]), (99, [0, 0, 0, 0]), (101, [0, 1, 1, 0]), (199, [0, 1, 1, 0]), (400, [1, 1, 1, 1])]
        {
            clock::set(START_NS + now_us * 1000);
            turn(&mut roster);
            assert_eq!(expired(&waiters), expected, "after {now_us} microseconds");
        }
        let polls: Vec<usize> = waiters.iter().map(|waiter| waiter.polls.load(Ordering::Relaxed)).collect();
        let rested = REST_AFTER as usize;
        assert_eq!(
            polls,
            [rested + 1, rested + 3, rested + 3, rested + 1],
            "none was polled for nothing while it rested"
        );
    }

    #[test]
    fn the_clock_is_read_once_a_turn_if_a_task_at_rest_has_a_deadline_and_else_never() {
        let (mut roster, waiters) = waiters(&[1000; 100], 100);
        let before = clock::reads();
        for count in 1..=50 {
            turn(&mut roster);
            assert_eq!(clock::reads() - before, count, "once for all of them");
        }
        clock::set(START_NS + 2_000_000);
        turn(&mut roster);
        assert!(expired(&waiters).iter().all(|&expired| expired == 1));
        (0..2 * REST_AFTER).for_each(|_| _ = turn(&mut roster));
        let before = clock::reads();
        (0..1000).for_each(|_| _ = turn(&mut roster));
        assert_eq!((roster.resting(), clock::reads()), (200, before), "nobody has a deadline any more");
    }

    #[test]
    fn deadlines_that_come_earlier_later_or_vanish_count_as_they_are_when_the_task_rests_again() {
        let (mut roster, waiters) = waiters(&[1000], 20);
        let change = |roster: &mut Roster, deadline| {
            *waiters[0].deadline.lock().expect("nobody panics") = deadline;
            // As every command does.
            roster.wake_all();
            (0..REST_AFTER).for_each(|_| _ = turn(roster));
            assert_eq!(roster.resting(), 21);
        };
        change(&mut roster, Some(Deadline::after(Duration::from_micros(100))));
        clock::set(START_NS + 101_000);
        turn(&mut roster);
        assert_eq!(expired(&waiters), [1], "earlier");
        change(&mut roster, Some(Deadline::after(Duration::from_micros(100))));
        change(&mut roster, Some(Deadline::after(Duration::from_micros(500))));
        clock::set(START_NS + 300_000);
        turn(&mut roster);
        assert_eq!(expired(&waiters), [1], "later");
        change(&mut roster, None);
        clock::set(START_NS + 10_000_000);
        turn(&mut roster);
        assert_eq!(expired(&waiters), [1], "never");
    }

    #[test]
    fn a_clock_that_jumps_back_calls_a_task_at_rest_and_leaves_none_behind() {
        let (mut roster, waiters) = waiters(&[3_600_000_000], 20);
        clock::set(1000);
        turn(&mut roster);
        assert_eq!(expired(&waiters), [1]);
    }
}
