//! A block device whose driver has accepted IN_ORDER: the driver sees the ends of its requests in the order in which it
//! made them, whatever the backend does, through a stop, a failure, a broken ring and a crash.
use pollux_core::{
    device::blk::{Blk, turn::GROUP},
    queue::position_of,
    stats::StatsSegment,
    transport::{STATUS_NEEDS_RESET, vhost_user::Server},
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, GET_ID, IN, IOERR, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour, control},
    front_end::{self, FrontEnd},
    rig::{Guest, Rig, options},
};
use std::path::Path;
use virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;

pollux_testing::on_both_rings!(
    it_is_offered_to_those_alone_whose_configuration_says_so,
    a_batch_of_the_rings_size_ends_by_one_element_each_time_it_is_shown,
    a_request_that_ends_at_once_waits_for_those_before_it,
    a_stop_gives_back_what_waits,
    a_failure_ends_all_requests_once_and_in_order,
    a_request_that_waits_cannot_be_made_again,
    requests_of_a_busy_guest_end_in_order_with_their_data,
    a_next_process_takes_over_what_waits,
);

const ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;

/// Names a disk of one test.
fn unique(kind: RingKind, name: &str) -> String {
    format!("{name}-{kind:?}")
}

fn rig(kind: RingKind, name: &str, behaviour: Behaviour) -> Rig {
    Rig::in_order(kind, disk::open(&unique(kind, name), 1 << 20, behaviour).expect("disk"), 256, true)
}

/// Used elements that the driver has taken up.
fn elements(rig: &Rig) -> u64 {
    rig.driver.ring.order().expect("a driver that expects the order").elements()
}

/// Makes one request that the backend holds, and one that the device answers itself.
fn held_and_answered(rig: &mut Rig) -> [u16; 2] {
    let held = rig.driver.add(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    let answered = rig.driver.add(GET_ID, 0, &[], &Cut::plain(0, 20)).expect("room");
    rig.driver.ring.publish();
    (0..10).for_each(|_| _ = rig.queue.poll());
    [held, answered]
}

fn it_is_offered_to_those_alone_whose_configuration_says_so(kind: RingKind) {
    for in_order in [false, true] {
        let worker = Worker::spawn("order", None, IdlePolicy::Adaptive).expect("worker");
        let disk = disk::open(&unique(kind, "offer"), 1 << 20, Behaviour::Inline).expect("disk");
        let mut options = options("offer", 2, &[worker.handle()]);
        options.queues.in_order = in_order;
        let mut guest = Guest::with_options(kind, disk, options);
        let offered = u64::from(guest.device.device_features(1)) << 32;
        assert_eq!(offered & ORDER != 0, in_order);
        // A driver need not accept it.
        for without in [0, ORDER] {
            assert_eq!(guest.start_without(without) & STATUS_NEEDS_RESET, 0);
            assert_eq!(guest.drivers[1].ring.order().is_some(), in_order && without == 0);
            assert_eq!(guest.request(1, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
        }
    }
}

fn a_batch_of_the_rings_size_ends_by_one_element_each_time_it_is_shown(kind: RingKind) {
    for behaviour in [Behaviour::Inline, Behaviour::Deferred, Behaviour::Reversed] {
        let disk = disk::open(&unique(kind, "merged"), 1 << 20, behaviour).expect("disk");
        let mut rig = Rig::in_order(kind, disk, 64, true);
        for round in 0..5 {
            let before = elements(&rig);
            let cut = Cut { indirect: true, ..Cut::plain(0, 512) };
            let made: Vec<u16> = (0..64).map(|_| rig.driver.add(IN, 0, &[], &cut).expect("room")).collect();
            rig.driver.ring.publish();
            let ended: Vec<_> = (0..64).map(|_| rig.finish()).collect();
            assert_eq!(ended.iter().map(|end| end.head).collect::<Vec<_>>(), made, "{behaviour:?}");
            assert!(ended.iter().all(|end| (end.status, end.written) == (OK, 513)));
            // A backend that completes requests at once is known by its first batch, and has the next ones shown in
            // groups.
            let groups = if behaviour == Behaviour::Inline && round > 0 { 64 / GROUP as u64 } else { 1 };
            assert_eq!(elements(&rig) - before, groups, "{behaviour:?}, round {round}");
        }
    }
}

fn a_request_that_ends_at_once_waits_for_those_before_it(kind: RingKind) {
    let mut rig = rig(kind, "waits", Behaviour::Held);
    let made = held_and_answered(&mut rig);
    assert_eq!(rig.driver.peek_status(made[1]), OK, "it has ended");
    assert!(rig.driver.pop().is_none() && !rig.signalled(), "and the driver is not told");
    control(&unique(kind, "waits")).release();
    let ended = [rig.finish(), rig.finish()];
    assert_eq!(ended.map(|end| (end.head, end.status, end.written)), [(made[0], OK, 513), (made[1], OK, 21)]);
    assert_eq!(elements(&rig), 1);
}

fn a_stop_gives_back_what_waits(kind: RingKind) {
    let mut rig = rig(kind, "stop", Behaviour::Held);
    let made = held_and_answered(&mut rig);
    let before = position_of(&mut *rig.queue).expect("a position").base;
    assert_eq!(before, rig.driver.ring.base(true) & 0xffff | rig.driver.ring.base(false) & 0xffff_0000);
    rig.queue.begin_stop();
    (0..10).for_each(|_| _ = rig.queue.poll());
    assert!(!rig.queue.is_stopped() && rig.driver.pop().is_none());
    control(&unique(kind, "stop")).release();
    wait_for("the end", || {
        rig.queue.poll();
        rig.queue.is_stopped().then_some(())
    });
    assert_eq!(
        position_of(&mut *rig.queue).expect("a position").base,
        rig.driver.ring.base(true),
        "all was given back"
    );
    assert_eq!([rig.driver.pop(), rig.driver.pop()].map(|end| end.map(|end| end.head)), made.map(Some));
}

fn a_failure_ends_all_requests_once_and_in_order(kind: RingKind) {
    for behaviour in [Behaviour::PanicPoll, Behaviour::PanicSubmit, Behaviour::Twice, Behaviour::Unknown] {
        let mut rig = rig(kind, "failure", behaviour);
        let mut made = Vec::new();
        for index in 0..10 {
            // Every third one is answered by the device.
            let (operation, length) = if index % 3 == 1 { (GET_ID, 20) } else { (IN, 512) };
            made.extend(rig.driver.add(operation, 0, &[], &Cut::plain(0, length)));
        }
        rig.driver.ring.publish();
        rig.wait_for_failure();
        let ended: Vec<_> = (0..10).map(|_| rig.finish()).collect();
        assert_eq!(ended.iter().map(|end| end.head).collect::<Vec<_>>(), made, "{behaviour:?}");
        for (index, end) in ended.iter().enumerate().filter(|_| behaviour != Behaviour::Twice) {
            assert_eq!(end.status, if index % 3 == 1 { OK } else { IOERR }, "{behaviour:?}");
        }
    }
}

fn a_request_that_waits_cannot_be_made_again(kind: RingKind) {
    let mut rig = rig(kind, "again", Behaviour::Held);
    let made = held_and_answered(&mut rig);
    match kind {
        RingKind::Split => rig.driver.ring.split().push_head(made[1]),
        RingKind::Packed => rig.driver.ring.packed().add_with_id(made[1]),
    }
    rig.driver.ring.publish();
    rig.wait_for_failure();
    control(&unique(kind, "again")).release();
    assert_eq!([rig.finish(), rig.finish()].map(|end| end.head), made, "what was in flight ends, once");
    (0..10).for_each(|_| _ = rig.queue.poll());
    assert_eq!(rig.driver.ring.used_count(), 0);
}

fn requests_of_a_busy_guest_end_in_order_with_their_data(kind: RingKind) {
    let worker = Worker::spawn("busy", None, IdlePolicy::Adaptive).expect("worker");
    let disk = disk::open(&unique(kind, "busy"), 1 << 20, Behaviour::Threaded).expect("disk");
    let mut options = options("busy", 2, &[worker.handle()]);
    options.queues.in_order = true;
    let mut guest = Guest::with_options(kind, disk, options);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let data = |block: u64| pattern(block, 512);
    let mut made = [std::collections::VecDeque::new(), std::collections::VecDeque::new()];
    for round in 0..600u64 {
        // First all blocks are written, then all are read: at each moment many end in any order.
        let (queue, block) = (round as usize % 2, round % 300);
        let head = if round < 300 {
            guest.submit(queue, OUT, block, &data(block), &Cut::plain(512, 0))
        } else {
            guest.submit(queue, IN, block, &[], &Cut::plain(0, 512))
        };
        made[queue].push_back((head, (round >= 300).then_some(block)));
        let all = round == 299 || round == 599;
        for (queue, made) in made.iter_mut().enumerate() {
            while made.len() >= if all { 1 } else { 20 } {
                let (head, block) = made.pop_front().expect("a request");
                let end = guest.finish(queue);
                assert_eq!((end.head, end.status), (head, OK), "round {round}");
                assert!(block.is_none_or(|block| end.data == data(block)), "round {round}");
            }
        }
    }
}

/// A process that serves the disk on `path`.
fn serve(kind: RingKind, path: &Path, worker: &Worker, name: &str, behaviour: Behaviour) -> Server {
    let backend = disk::open(&unique(kind, name), 1 << 20, behaviour).expect("a disk");
    let mut options = options(name, 1, &[worker.handle()]);
    options.queues.in_order = true;
    let model = Blk::new(options, backend, &StatsSegment::anonymous(1).expect("statistics"));
    front_end::serve(model, path)
}

/// Over vhost-user: one device holds the first request, so that those it answers itself wait; the front end goes over
/// to another.
fn a_next_process_takes_over_what_waits(kind: RingKind) {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first.sock", "second.sock"].map(|name| folder.path().join(name));
    let worker = Worker::spawn("order", None, IdlePolicy::Adaptive).expect("worker");
    let held = serve(kind, &first, &worker, "holds", Behaviour::Held);
    let next = serve(kind, &second, &worker, "next", Behaviour::Inline);
    let mut front = FrontEnd::with_rings(kind, &first, 1);
    assert_eq!(front.features() & ORDER, ORDER);
    front.track_inflight();
    front.start();
    let mut made = vec![front.submit(0, IN, 0, &[], &Cut::plain(0, 512))];
    made.extend((0..5).map(|_| front.submit(0, GET_ID, 0, &[], &Cut::plain(0, 20))));
    let last = *made.last().expect("a request");
    wait_for("those behind the first one to end", || (front.drivers[0].peek_status(last) == OK).then_some(()));
    assert_eq!(front.drivers[0].ring.used_count(), 0, "they wait");
    // The first device keeps what it has, as one does that hangs: nothing of it comes any more.
    front.reconnect(&second);
    for head in made {
        let end = front.finish(0);
        assert_eq!((end.head, end.status), (head, OK), "each once, and in order");
    }
    assert_eq!(front.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    assert_eq!(front.stop(0), front.drivers[0].ring.base(true));
    drop(next);
    control(&unique(kind, "holds")).release();
    drop(held);
}
