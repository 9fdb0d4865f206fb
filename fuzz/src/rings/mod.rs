//! Any driver on a block queue. It follows the rules at first, and what it asks for is compared with a model; from some
//! step on it may break all of them, and the device must stand that.
mod book;
mod hostile;
mod request;

use crate::{disk, input::Input};
use book::Book;
use pollux_core::{
    memory::GuestMemory,
    ring::{RingKind, RingStart},
};
use pollux_testing::{
    blk::BlkDriver,
    disk::{Behaviour, Control},
    inflight::InflightFile,
    rig::{Rig, options},
};
use request::{DEPTH, Request};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const STEPS_MAX: usize = 200;
/// Turns after which nothing may be in flight any more, once the backend holds nothing back.
const TURNS_MAX: usize = 2000;
/// What the memory beside the guest's is filled with.
const CANARY: [u8; 4096] = [0x5a; 4096];

/// Drives a device as the input says.
///
/// # Panics
/// A request ends not at all, twice, with the wrong status, length or data, or outside of its buffers; a signal or a
/// wish for a kick is missing; the device fails an honest driver, or does not come to rest; memory that is not the
/// guest's has changed.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    // The kernel puts new mappings beside older ones.
    let canary = || {
        let memory = GuestMemory::create(&[(0, CANARY.len() as u64)], None).expect("memory");
        memory.map().write_slice(&CANARY, GuestAddress(0)).expect("memory");
        memory
    };
    let above = canary();
    let mut bench = Bench::new(&mut input);
    let below = canary();
    for _ in 0..STEPS_MAX {
        if input.is_empty() || !bench.step(&mut input) {
            break;
        }
    }
    bench.end();
    for memory in [above, below] {
        let mut bytes = [0; CANARY.len()];
        memory.map().read_slice(&mut bytes, GuestAddress(0)).expect("memory");
        assert!(bytes == CANARY, "memory that is not the guest's was written");
    }
}

/// A device with a driver, and what is known of both.
struct Bench {
    rig: Rig,
    control: Arc<Control>,
    book: Book,
    record: Option<InflightFile>,
    /// The driver has broken no rule yet.
    is_honest: bool,
    /// The device sleeps.
    sleeps: bool,
    /// The device sleeps and has seen everything that was published.
    wants_kick: bool,
    /// The driver waits for the interrupt of the next used buffer.
    expects_signal: bool,
}

impl Bench {
    fn new(input: &mut Input<'_>) -> Self {
        let kind = input.choose(&RingKind::BOTH);
        let size = input.choose(&match kind {
            RingKind::Split => [16, 64, 16, 32],
            RingKind::Packed => [16, 64, 17, 31],
        });
        let (event_idx, in_order, has_record) = (input.flag(), input.flag(), input.flag());
        let behaviour = input.choose(&[
            Behaviour::Metered,
            Behaviour::Inline,
            Behaviour::Deferred,
            Behaviour::Reversed,
            Behaviour::Slow,
            Behaviour::Hesitant,
            Behaviour::Failing,
        ]);
        let (backend, control) = disk::empty(behaviour);
        let memory = GuestMemory::create(&[(0, BlkDriver::bytes(size, DEPTH))], None).expect("memory");
        let mut driver = BlkDriver::new(kind, &memory, 0, size, DEPTH, event_idx);
        if in_order {
            driver.ring.set_in_order();
        }
        let record = has_record.then(|| InflightFile::new(kind, size));
        let start = record.as_ref().map_or_else(RingStart::default, |record| record.start(None));
        let rig = Rig::with_start(kind, backend, driver, event_idx, options("rings", 1, &[]), start);
        Bench {
            rig,
            control,
            book: Book::new(behaviour),
            record,
            is_honest: true,
            sleeps: false,
            wants_kick: false,
            expects_signal: false,
        }
    }

    /// One step of driver, device, backend or chance. Returns whether there can be another.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(16) {
            0..4 if self.is_honest => self.add(input),
            4 | 5 => self.publish(),
            6 | 7 => self.poll(1 + input.below(4)),
            8 => self.control.complete(1 + input.below(8)),
            9 => self.reap(1 + input.below(DEPTH)),
            10 => self.want_interrupts(input.flag()),
            11 => self.sleep(),
            12 => return self.take_over(),
            13 if self.is_honest => self.reap(DEPTH),
            14 if self.is_honest => self.add(input),
            _ => {
                self.is_honest = false;
                let record = self.record.as_ref().map(|record| (&record.file, record.bytes));
                hostile::step(&mut self.rig.driver, record, input);
            }
        }
        true
    }

    /// Makes a request, without showing it to the device.
    fn add(&mut self, input: &mut Input<'_>) {
        let request = Request::new(input);
        let cut = request.cut(input);
        let Some(head) = self.rig.driver.add(request.kind, request.sector, &request.out, &cut) else { return };
        self.book.add(&self.rig.driver, head, &request);
    }

    fn publish(&mut self) {
        let is_wanted = self.rig.driver.ring.publish();
        if !self.is_honest || !self.book.publish() {
            return;
        }
        // With the first one it wakes up.
        let wants = std::mem::take(&mut self.wants_kick);
        assert!(is_wanted || !wants, "a device that sleeps wants a kick");
    }

    /// Turns the device. Before that it wakes up.
    fn poll(&mut self, turns: usize) {
        self.wants_kick = false;
        if std::mem::take(&mut self.sleeps) {
            self.rig.queue.disarm();
        }
        for _ in 0..turns {
            self.rig.queue.poll();
        }
        if !self.is_honest {
            return;
        }
        assert!(!self.rig.interrupts.has_failed(), "the device fails an honest driver");
        if self.expects_signal && self.rig.driver.ring.used_count() > 0 {
            assert!(self.rig.signalled(), "the driver is told of used buffers");
            self.expects_signal = false;
        }
    }

    fn sleep(&mut self) {
        if self.sleeps {
            return;
        }
        self.sleeps = !self.rig.queue.arm();
        self.wants_kick = self.sleeps;
        if !self.sleeps {
            self.rig.queue.disarm();
        }
    }

    fn want_interrupts(&mut self, wanted: bool) {
        if !self.is_honest {
            return;
        }
        self.rig.driver.ring.want_interrupts(wanted);
        // With something used already, the driver would look for it instead of waiting.
        self.expects_signal = wanted && self.rig.driver.ring.used_count() == 0;
        if self.expects_signal {
            self.rig.signalled();
        }
    }

    /// Takes up what has ended.
    fn reap(&mut self, count: usize) {
        if !self.is_honest {
            return;
        }
        for _ in 0..count {
            if !self.book.take(&mut self.rig.driver) {
                break;
            }
        }
    }

    /// The device's process dies, and the next one goes on. Returns whether it can.
    fn take_over(&mut self) -> bool {
        let Some(record) = &self.record else { return true };
        if self.rig.interrupts.has_failed() {
            // It has to be reset first.
            return true;
        }
        let base = self.is_honest.then(|| self.rig.driver.ring.base(false));
        let taken_over = self.rig.take_over(record.start(base.or(Some(0))));
        assert!(taken_over.is_ok() || !self.is_honest, "the next process goes on: {taken_over:?}");
        self.book.take_over();
        (self.sleeps, self.wants_kick) = (false, false);
        taken_over.is_ok()
    }

    /// Everything ends that was begun, and the device stops.
    fn end(&mut self) {
        self.publish();
        self.control.release();
        if self.is_honest {
            for _ in 0..TURNS_MAX {
                self.poll(1);
                self.reap(DEPTH);
                if self.book.is_empty() {
                    break;
                }
            }
            assert!(self.book.is_empty(), "every request ends");
        }
        self.poll(1);
        self.rig.queue.begin_stop();
        let is_stopped = (0..TURNS_MAX).any(|_| {
            self.rig.queue.poll();
            self.rig.queue.is_stopped()
        });
        assert!(is_stopped, "the device comes to rest");
        self.reap(DEPTH);
    }
}
