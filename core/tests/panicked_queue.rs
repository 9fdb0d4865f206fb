//! A queue that panics stands still; its guest is told, and has it back after a reset.
use pollux_core::{
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::{
    fmt::{self, Write},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// A log whose next line about a broken ring makes whoever writes it panic: a mistake within the data path.
struct PanickingLog;

static PANICS_LEFT: AtomicUsize = AtomicUsize::new(0);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, _field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{value:?}").expect("text");
    }
}

impl Subscriber for PanickingLog {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let is_ours = text.0.contains("broke its ring");
        let take = |left: usize| left.checked_sub(1).filter(|_| is_ours);
        let taken = PANICS_LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        assert!(taken.is_err(), "told to panic");
    }
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

fn panic_at_the_next_broken_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(PanickingLog).expect("the only one"));
    PANICS_LEFT.fetch_add(1, Ordering::AcqRel);
}

#[test]
fn a_queue_that_panicked_is_served_again_after_a_reset_however_often() {
    for kind in RingKind::BOTH {
        let name = format!("panicked-{kind:?}");
        let worker = Worker::spawn("panicked", None, IdlePolicy::Adaptive).expect("worker");
        let disk = disk::open(&name, 1 << 20, Behaviour::Held).expect("disk");
        let mut guest = Guest::with_rings(kind, &name, disk, 1, &[worker.handle()]);
        for round in 0..3 {
            assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "{kind:?}, round {round}");
            // Something is in flight that the backend never ends by itself.
            guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
            let stats = guest.stats.blk_queues().next().expect("stats");
            wait_for("a request in the backend", || (stats.in_flight.get() == 1).then_some(()));
            panic_at_the_next_broken_ring();
            guest.drivers[0].ring.break_rules();
            guest.device.kick(0).expect("a queue").write(1).expect("a kick");
            wait_for("the end of the panic", || (PANICS_LEFT.load(Ordering::Acquire) == 0).then_some(()));
            wait_for("DEVICE_NEEDS_RESET", || (guest.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
            guest.device.set_status(0);
            assert_eq!(guest.device.status(), 0);
        }
        disk::control(&name).release();
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK, "{kind:?}");
    }
}
