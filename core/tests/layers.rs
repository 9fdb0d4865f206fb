//! Layers between a block device and its disk hold requests back, delay, end, fail, repeat and split them; the guest
//! sees each request end once, and a disk as the layers describe it.
use pollux_abi::block_v1::{
    BlockInfo, BlockRequest, POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_INFO_READ_ONLY,
};
use pollux_core::{
    block::{
        Completion, DiskError, QueueFailed, StopFailed,
        filter::{Below, Filter, FilterQueue},
        held::HeldRequest,
        stack::Stack,
    },
    device::DeviceModel,
    stats::{Capacity, StatsSegment},
    worker::{Deadline, IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, DISCARD, FLUSH, IN, IOERR, OK, OUT, pattern, range, wait_for},
    disk::{self, Behaviour},
    registers::{BusGuest, BusKind},
    rig::{Guest, Rig},
};
use std::{
    collections::VecDeque,
    mem, slice,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

pollux_testing::on_both_rings!(
    requests_held_back_end_later_and_keep_their_worker_awake,
    a_stop_waits_for_requests_held_back,
    requests_held_back_end_with_an_error_when_the_disk_fails,
    a_worker_sleeps_until_a_delayed_request_goes_on,
    a_request_that_a_layer_ends_does_not_reach_the_disk,
    a_layer_repeats_what_failed_below_it,
    what_a_layer_fails_fails_for_the_guest,
    a_request_is_split_in_two_and_ends_once,
    a_layer_changes_what_the_disk_is_like,
    a_disk_that_grows_behind_a_layer_has_the_capacity_that_the_layer_says,
);

const DISK_BYTES: u64 = 1 << 20;
const READ_ONLY: u64 = 1 << 5;

/// Opens a layer's part of a queue, with room for as many requests as there may be.
type Open = fn(usize) -> Box<dyn FilterQueue>;

/// A layer without anything that its queues have in common.
#[derive(Debug)]
struct Layer(Open);

impl Filter for Layer {
    fn open_queue(&self, _index: u32, depth: u32) -> Result<Box<dyn FilterQueue>, DiskError> {
        Ok(self.0(depth as usize))
    }
}

fn rig(kind: RingKind, name: &str, behaviour: Behaviour, filters: Vec<Arc<dyn Filter>>) -> Rig {
    let disk = disk::open(&format!("{name}-{kind:?}"), DISK_BYTES, behaviour).expect("disk");
    Rig::new(kind, Stack::over(disk, filters), 128, true)
}

fn submit(rig: &mut Rig, sector: u64) {
    rig.driver.submit(OUT, sector, &pattern(sector, 512), &Cut::plain(512, 0)).expect("room");
}

/// Turns of the device, which end no request.
fn turns(rig: &mut Rig, count: usize) {
    for _ in 0..count {
        rig.queue.poll();
        assert!(rig.driver.pop().is_none());
    }
}

/// Turns for which [`Hold`] keeps requests.
const HELD_TURNS: usize = 3;

/// Passes requests on a few turns later.
#[derive(Debug, Default)]
struct Hold(VecDeque<(usize, HeldRequest)>);

impl FilterQueue for Hold {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        _below: &mut Below<'_>,
        _done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        self.0.extend(requests.iter().map(|request| (HELD_TURNS, HeldRequest::new(request))));
        Ok(requests.len())
    }

    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        below.poll(done)?;
        self.0.iter_mut().for_each(|(turns, _)| *turns = turns.saturating_sub(1));
        while let Some((0, held)) = self.0.front()
            && below.submit(slice::from_mut(&mut held.request()), done)? == 1
        {
            self.0.pop_front();
        }
        Ok(())
    }

    fn arm(&mut self, armed: bool, below: &mut Below<'_>) -> Result<bool, QueueFailed> {
        Ok(below.arm(armed)? || !self.0.is_empty())
    }

    fn stop(&mut self, below: &mut Below<'_>) -> Result<(), StopFailed> {
        self.0.clear();
        below.stop()
    }
}

fn hold() -> Arc<dyn Filter> {
    Arc::new(Layer(|_| Box::<Hold>::default()))
}

fn requests_held_back_end_later_and_keep_their_worker_awake(kind: RingKind) {
    // A disk that takes one at a time, too.
    for behaviour in [Behaviour::Inline, Behaviour::Threaded, Behaviour::Slow] {
        let mut rig = rig(kind, "held", behaviour, vec![hold(), hold()]);
        (0..20).for_each(|sector| submit(&mut rig, sector));
        turns(&mut rig, HELD_TURNS);
        assert!(rig.queue.arm(), "{behaviour:?}: it has something to do");
        rig.queue.disarm();
        for _ in 0..20 {
            assert_eq!(rig.finish().status, OK, "{behaviour:?}");
        }
        assert!(!rig.queue.arm(), "{behaviour:?}: it may sleep");
        rig.queue.disarm();
        for sector in 0..20 {
            rig.driver.submit(IN, sector, &[], &Cut::plain(0, 512)).expect("room");
            assert!(rig.finish().data == pattern(sector, 512), "{behaviour:?}");
        }
    }
}

fn a_stop_waits_for_requests_held_back(kind: RingKind) {
    let mut rig = rig(kind, "held-stop", Behaviour::Deferred, vec![hold()]);
    (0..20).for_each(|sector| submit(&mut rig, sector));
    turns(&mut rig, 1);
    rig.queue.begin_stop();
    turns(&mut rig, 1);
    assert!(!rig.queue.is_stopped());
    (0..20).for_each(|_| assert_eq!(rig.finish().status, OK));
    while !rig.queue.is_stopped() {
        rig.queue.poll();
    }
    let control = disk::control(&format!("held-stop-{kind:?}"));
    assert_eq!(control.flushes.load(Ordering::SeqCst), 1, "the last flush is held, too, and done");
}

fn requests_held_back_end_with_an_error_when_the_disk_fails(kind: RingKind) {
    let mut rig = rig(kind, "held-failed", Behaviour::PanicPoll, vec![hold()]);
    submit(&mut rig, 0);
    turns(&mut rig, HELD_TURNS);
    // The first of them is with the disk when it fails; these are not.
    (1..20).for_each(|sector| submit(&mut rig, sector));
    (0..20).for_each(|_| assert_eq!(rig.finish().status, IOERR));
    assert!(rig.interrupts.has_failed());
    assert!(rig.driver.pop().is_none(), "each ends once");
}

/// How long [`Delay`] keeps requests.
const DELAY: Duration = Duration::from_millis(20);

/// Passes requests on a while later, and says when.
#[derive(Debug, Default)]
struct Delay(VecDeque<(Deadline, HeldRequest)>);

impl FilterQueue for Delay {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        _below: &mut Below<'_>,
        _done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        let deadline = Deadline::after(DELAY);
        self.0.extend(requests.iter().map(|request| (deadline, HeldRequest::new(request))));
        Ok(requests.len())
    }

    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        below.poll(done)?;
        while let Some((deadline, held)) = self.0.front()
            && deadline.is_due()
            && below.submit(slice::from_mut(&mut held.request()), done)? == 1
        {
            self.0.pop_front();
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        self.0.front().map(|(deadline, _)| *deadline)
    }
}

fn a_worker_sleeps_until_a_delayed_request_goes_on(kind: RingKind) {
    // Disks without and with a descriptor to wait for, and one that has to be polled.
    for behaviour in [Behaviour::Inline, Behaviour::Threaded, Behaviour::Deferred] {
        let segment = StatsSegment::anonymous_with(Capacity { workers: 1, queues: 0, backends: 0 }).expect("a segment");
        let stats = segment.add_worker("io0").expect("room");
        let worker = Worker::spawn_counted("io0", None, IdlePolicy::Interrupt, stats.clone()).expect("a worker");
        let disk = disk::open(&format!("delayed-{behaviour:?}-{kind:?}"), DISK_BYTES, behaviour).expect("disk");
        let delay = || Arc::new(Layer(|_| Box::<Delay>::default())) as Arc<dyn Filter>;
        let mut guest =
            Guest::with_rings(kind, "delayed", Stack::over(disk, vec![delay(), delay()]), 1, &[worker.handle()]);
        guest.start();
        for round in 0..3 {
            let begin = Instant::now();
            (0..10).for_each(|sector| _ = guest.submit(0, OUT, sector, &pattern(sector, 512), &Cut::plain(512, 0)));
            assert_eq!(guest.finish(0).status, OK);
            let elapsed = begin.elapsed();
            assert!(elapsed >= 2 * DELAY, "{behaviour:?}: {elapsed:?}, which is early");
            (1..10).for_each(|_| assert_eq!(guest.finish(0).status, OK));
            let woken = || stats.wakes_by_deadline.get() > round;
            wait_for("a sleep until a deadline", || woken().then_some(()));
        }
        assert!(stats.sleeps.get() < 200, "{behaviour:?}: {} sleeps", stats.sleeps.get());
    }
}

/// Ends flushes itself.
#[derive(Debug)]
struct NoFlush;

impl FilterQueue for NoFlush {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        below: &mut Below<'_>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        for (index, request) in requests.iter_mut().enumerate() {
            if request.operation == POLLUX_BLOCK_FLUSH {
                done.push(Completion { slot: request.token as u32, result: 0 });
            } else if below.submit(slice::from_mut(request), done)? == 0 {
                return Ok(index);
            }
        }
        Ok(requests.len())
    }
}

fn a_request_that_a_layer_ends_does_not_reach_the_disk(kind: RingKind) {
    for behaviour in [Behaviour::Inline, Behaviour::Slow] {
        let name = format!("no-flush-{behaviour:?}");
        let mut rig = rig(kind, &name, behaviour, vec![Arc::new(Layer(|_| Box::new(NoFlush)))]);
        for sector in 0..10 {
            submit(&mut rig, sector);
            rig.driver.submit(FLUSH, 0, &[], &Cut::plain(0, 0)).expect("room");
        }
        (0..20).for_each(|_| assert_eq!(rig.finish().status, OK));
        drop(rig);
        let control = disk::control(&format!("{name}-{kind:?}"));
        assert_eq!(control.flushes.load(Ordering::SeqCst), 0, "nor does the last flush");
    }
}

/// Fails every third request, whatever the disk says of it.
#[derive(Debug, Default)]
struct Fail(u32);

impl Fail {
    fn change(&mut self, done: &mut [Completion]) {
        for completion in done {
            self.0 += 1;
            if self.0.is_multiple_of(3) {
                completion.result = -libc::EIO;
            }
        }
    }
}

impl FilterQueue for Fail {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        below: &mut Below<'_>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        let before = done.len();
        let taken = below.submit(requests, done)?;
        self.change(&mut done[before..]);
        Ok(taken)
    }

    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        let before = done.len();
        below.poll(done)?;
        self.change(&mut done[before..]);
        Ok(())
    }
}

fn fail() -> Arc<dyn Filter> {
    Arc::new(Layer(|_| Box::<Fail>::default()))
}

fn what_a_layer_fails_fails_for_the_guest(kind: RingKind) {
    for behaviour in [Behaviour::Inline, Behaviour::Deferred] {
        let mut rig = rig(kind, "failing-layer", behaviour, vec![fail()]);
        (0..30).for_each(|sector| submit(&mut rig, sector));
        let failed = (0..30).filter(|_| rig.finish().status == IOERR).count();
        assert_eq!(failed, 10, "{behaviour:?}");
    }
}

/// Passes requests on once more until they succeed.
#[derive(Debug)]
struct Repeat {
    by_slot: Vec<Option<HeldRequest>>,
    again: VecDeque<HeldRequest>,
}

impl Repeat {
    /// Takes out of `done` what has failed.
    fn keep_failed(&mut self, from: usize, done: &mut Vec<Completion>) {
        let mut index = from;
        while let Some(completion) = done.get(index) {
            if completion.result == 0 {
                index += 1;
                continue;
            }
            self.again.extend(self.by_slot[completion.slot as usize]);
            done.remove(index);
        }
    }
}

impl FilterQueue for Repeat {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        below: &mut Below<'_>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        for request in &*requests {
            self.by_slot[request.token as usize] = Some(HeldRequest::new(request));
        }
        let before = done.len();
        let taken = below.submit(requests, done)?;
        self.keep_failed(before, done);
        Ok(taken)
    }

    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        let before = done.len();
        below.poll(done)?;
        for held in mem::take(&mut self.again) {
            if below.submit(slice::from_mut(&mut held.request()), done)? == 0 {
                self.again.push_back(held);
            }
        }
        self.keep_failed(before, done);
        Ok(())
    }
}

fn a_layer_repeats_what_failed_below_it(kind: RingKind) {
    for behaviour in [Behaviour::Inline, Behaviour::Deferred, Behaviour::Slow] {
        let repeat =
            Layer(|depth| Box::new(Repeat { by_slot: (0..depth).map(|_| None).collect(), again: VecDeque::new() }));
        let mut rig = rig(kind, "repeating", behaviour, vec![Arc::new(repeat), fail()]);
        (0..30).for_each(|sector| submit(&mut rig, sector));
        (0..30).for_each(|_| assert_eq!(rig.finish().status, OK, "{behaviour:?}"));
        for sector in 0..30 {
            let read = rig.request(IN, sector, &[], &Cut::plain(0, 512));
            assert!(read.status == OK && read.data == pattern(sector, 512), "{behaviour:?}");
        }
    }
}

/// Makes two requests of a discard. Below, a slot is two.
#[derive(Debug)]
struct Halves;

impl Filter for Halves {
    fn depth_below(&self, depth: u32) -> u32 {
        2 * depth
    }

    fn open_queue(&self, _index: u32, depth: u32) -> Result<Box<dyn FilterQueue>, DiskError> {
        let waits_for = vec![0; depth as usize];
        Ok(Box::new(HalvesQueue { waits_for, done: Vec::with_capacity(2 * depth as usize), pending: VecDeque::new() }))
    }
}

#[derive(Debug)]
struct HalvesQueue {
    /// How many parts of each slot's request have not ended.
    waits_for: Vec<u8>,
    /// What has completed below, in the numbers from there.
    done: Vec<Completion>,
    pending: VecDeque<HeldRequest>,
}

impl HalvesQueue {
    fn pass_on(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        while let Some(held) = self.pending.front()
            && below.submit(slice::from_mut(&mut held.request()), &mut self.done)? == 1
        {
            self.pending.pop_front();
        }
        for completion in self.done.drain(..) {
            let slot = completion.slot / 2;
            let waits_for = &mut self.waits_for[slot as usize];
            *waits_for -= 1;
            if *waits_for == 0 {
                done.push(Completion { slot, result: completion.result });
            }
        }
        Ok(())
    }
}

impl FilterQueue for HalvesQueue {
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        below: &mut Below<'_>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        for request in &*requests {
            let mut first = BlockRequest { token: 2 * request.token, ..*request };
            let is_split = request.operation == POLLUX_BLOCK_DISCARD && request.length >= 1024;
            self.waits_for[request.token as usize] = 1 + u8::from(is_split);
            if is_split {
                first.length = 512;
                let (offset, length) = (request.offset + 512, request.length - 512);
                let second = BlockRequest { token: first.token + 1, offset, length, ..first };
                self.pending.push_back(HeldRequest::new(&second));
            }
            self.pending.push_back(HeldRequest::new(&first));
        }
        self.pass_on(below, done)?;
        Ok(requests.len())
    }

    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        below.poll(&mut self.done)?;
        self.pass_on(below, done)
    }
}

fn a_request_is_split_in_two_and_ends_once(kind: RingKind) {
    for behaviour in [Behaviour::Inline, Behaviour::Reversed, Behaviour::Slow] {
        let mut rig = rig(kind, "halves", behaviour, vec![Arc::new(Halves)]);
        (0..20).for_each(|sector| submit(&mut rig, sector));
        (0..20).for_each(|_| assert_eq!(rig.finish().status, OK));
        for first in (0..20).step_by(5) {
            rig.driver.submit(DISCARD, 0, &range(first, 4, 0), &Cut::plain(16, 0)).expect("room");
        }
        (0..4).for_each(|_| assert_eq!(rig.finish().status, OK, "{behaviour:?}"));
        assert!(rig.driver.pop().is_none());
        for sector in 0..20 {
            let read = rig.request(IN, sector, &[], &Cut::plain(0, 512));
            let expected = if sector % 5 == 4 { pattern(sector, 512) } else { vec![0; 512] };
            assert!(read.status == OK && read.data == expected, "{behaviour:?}: sector {sector}");
        }
    }
}

/// Says that nothing can be written.
#[derive(Debug)]
struct ReadOnly;

impl Filter for ReadOnly {
    fn describe(&self, below: BlockInfo) -> BlockInfo {
        BlockInfo { flags: below.flags | POLLUX_BLOCK_INFO_READ_ONLY, ..below }
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<Box<dyn FilterQueue>, DiskError> {
        Ok(Box::new(ReadOnly))
    }
}

impl FilterQueue for ReadOnly {}

fn a_layer_changes_what_the_disk_is_like(kind: RingKind) {
    let mut rig = rig(kind, "read-only-layer", Behaviour::Inline, vec![Arc::new(ReadOnly)]);
    assert_ne!(rig.device.features() & READ_ONLY, 0, "VIRTIO_BLK_F_RO (virtio 1.3, 5.2.3)");
    assert_eq!(rig.request(OUT, 0, &[1; 512], &Cut::plain(512, 0)).status, IOERR);
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

/// Keeps the last quarter of the disk to itself.
#[derive(Debug)]
struct Smaller;

impl Filter for Smaller {
    fn describe(&self, below: BlockInfo) -> BlockInfo {
        BlockInfo { capacity: below.capacity / 4 * 3, ..below }
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<Box<dyn FilterQueue>, DiskError> {
        Ok(Box::new(Smaller))
    }
}

impl FilterQueue for Smaller {}

fn a_disk_that_grows_behind_a_layer_has_the_capacity_that_the_layer_says(kind: RingKind) {
    let worker = Worker::spawn("layers", None, IdlePolicy::Adaptive).expect("a worker");
    let sectors = |disk_bytes: u64| disk_bytes / 4 * 3 / 512;
    for bus in BusKind::BOTH {
        let name = format!("grows-behind-a-layer-{bus:?}-{kind:?}");
        let disk = disk::open(&name, DISK_BYTES, Behaviour::Inline).expect("disk");
        let stack = Stack::over(disk, vec![Arc::new(Smaller)]);
        let mut guest = BusGuest::new(bus, kind, &name, stack, 1, &[worker.handle()]);
        guest.start();
        let (before, after) = (sectors(DISK_BYTES), sectors(2 * DISK_BYTES));
        let status_of = |guest: &mut BusGuest, sector| guest.request(0, IN, sector, &[], &Cut::plain(0, 512)).status;
        assert_eq!(guest.read(|layout| layout.config), before);
        guest.write(|layout| layout.config_vector, 0);
        disk::control(&name).resize(2 * DISK_BYTES);
        guest.handle().refresh();
        wait_for("a configuration change interrupt", || guest.vectors[0].read().ok());
        assert_eq!(guest.read(|layout| layout.config), after);
        // The queue goes by it, too. Requests come last, since registers in memory have one interrupt for everything.
        assert_eq!([before, after].map(|sector| status_of(&mut guest, sector)), [OK, IOERR]);
    }
}
