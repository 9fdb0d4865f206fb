//! The ideal device does what a device does: else it would be no measure.
use pollux_core::ring::RingKind;
use pollux_loadgen::{FrontEnd, FrontEndOptions, Indirect, Load, LoadLimits, Workload, ideal::Kind};

fn run(kind: Kind, options: &FrontEndOptions, read_share: u8, verify: bool) -> (Load, u64) {
    let mut front_end = FrontEnd::ideal(kind, None, options).expect("an ideal device");
    let workload = Workload { read_share, size: Some(16 << 20), ..Workload::default() };
    let mut load = Load::new(&workload, &mut front_end, verify).expect("a load");
    let limits = LoadLimits { depth: options.depth, duration: None, requests: Some(2000), ..LoadLimits::default() };
    let outcome = load.run(&mut front_end, &limits, &mut |_| {}).expect("a run");
    if verify {
        load.read_back(&mut front_end, &limits).expect("a run");
    }
    let total = outcome.total();
    assert_eq!((total.errors, front_end.in_flight()), (0, 0));
    (load, total.counters.kicks)
}

#[test]
fn its_memory_holds_what_was_written() {
    for (ring, indirect) in
        RingKind::BOTH.into_iter().flat_map(|ring| [Indirect::Auto, Indirect::Never].map(|indirect| (ring, indirect)))
    {
        let options = FrontEndOptions { queues: 2, depth: 16, ring, indirect, ..FrontEndOptions::default() };
        let (load, kicks) = run(Kind::Memory, &options, 50, true);
        assert!(load.blocks_checked() > 100);
        assert_eq!(load.fault_count(), 0, "{:?}", load.faults());
        assert!(kicks <= 2, "it polls and says so: {kicks}");
    }
}

#[test]
fn without_memory_requests_complete() {
    for ring in RingKind::BOTH {
        run(Kind::Null, &FrontEndOptions { depth: 64, ring, ..FrontEndOptions::default() }, 100, false);
    }
}
