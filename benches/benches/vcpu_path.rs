//! The whole path with a real vCPU: a guest whose driver runs at privilege level 3 reads through virtio-pci and
//! virtio-mmio, a worker polls, the `null` plugin answers. Prints requests per second and exits per request at depths
//! 1 and 32.
//!
//! The variants take turns, so that a machine that changes its speed changes it for all; each figure is the median of
//! the rounds, with the least and the greatest beside it.
#![allow(missing_docs)]
use pollux_benches::{backend, median, round_trip_ns};
use pollux_core::{
    device::blk::{Blk, BlkOptions},
    queue::QueueOptions,
    stats::{StatsSegment, clock},
    worker::{IdlePolicy, Worker},
};
use pollux_test_guest::{
    TestGuest, machine_spec,
    mailbox::{plan, report as word},
    report, run_measured,
};
use pollux_vmm::{Machine, Transport, VcpuSpec};
use std::error::Error;

const ROUNDS: usize = 7;
const VCPU_CPU: usize = 0;
const WORKER_CPU: usize = 1;

/// What one run gives.
struct Measured {
    requests_per_second: f64,
    exits_per_request: f64,
    kicks: u64,
}

fn run(transport: Transport, depth: u64) -> Result<Measured, Box<dyn Error>> {
    let requests = if depth == 1 { 400_000 } else { 2_000_000 };
    let device = match transport {
        Transport::Pci => [(plan::TRANSPORT, 0), (plan::DEVICE, 1)],
        Transport::Mmio => [(plan::TRANSPORT, 1), (plan::DEVICE, 0xd000_0000)],
    };
    let mut words = vec![
        (plan::ACTION, plan::ACTION_MEASURE),
        (plan::DEPTH, depth),
        (plan::REQUESTS, requests),
        (plan::BYTES, 4096),
        (plan::SESSIONS, 1),
        (plan::LINE, 5),
    ];
    words.extend(device);
    let guest = TestGuest::new(&words)?;
    let worker = Worker::spawn("bench", Some(WORKER_CPU), IdlePolicy::Spin)?;
    let stats = StatsSegment::anonymous(1)?;
    let mut spec = machine_spec(&guest);
    spec.vcpus = vec![VcpuSpec { pin: Some(VCPU_CPU) }];
    let mut machine = Machine::new(spec)?;
    let options = BlkOptions {
        name: "blk0".into(),
        serial: String::new(),
        workers: vec![worker.handle()],
        queues: QueueOptions::default(),
    };
    machine.attach(Box::new(Blk::new(options, backend("null", "{}"), &stats)), transport)?;
    let (exits, kicks) = run_measured(&mut machine)?;
    let seconds = clock::Scale::new().nanoseconds(report(machine.memory(), word::TICKS)) as f64 / 1e9;
    Ok(Measured {
        requests_per_second: requests as f64 / seconds,
        exits_per_request: exits.total() as f64 / requests as f64,
        kicks,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        println!("SKIPPED: vcpu_path: cannot open /dev/kvm: {error}");
        return Ok(());
    }
    if pollux_core::cpus::usable().len() < 2 {
        println!("SKIPPED: vcpu_path: a vCPU and a worker need a CPU each");
        return Ok(());
    }
    let variants = [(Transport::Pci, 1), (Transport::Pci, 32), (Transport::Mmio, 1), (Transport::Mmio, 32)];
    let mut results = variants.map(|_| (Vec::new(), Vec::new(), 0.0f64, 0));
    for _ in 0..ROUNDS {
        for ((transport, depth), (rates, trips, exits, kicks)) in variants.iter().zip(&mut results) {
            let before = round_trip_ns(VCPU_CPU, WORKER_CPU);
            let measured = run(*transport, *depth)?;
            trips.push((before + round_trip_ns(VCPU_CPU, WORKER_CPU)) / 2.0);
            rates.push(measured.requests_per_second / 1e3);
            *exits = exits.max(measured.exits_per_request);
            *kicks += measured.kicks;
        }
    }
    println!("4 KiB reads by a guest on KVM, null plugin, one vCPU and one worker, {ROUNDS} alternating rounds");
    println!("transport depth   k requests/s median (least to greatest)   exits/request   kicks   core-to-core ns");
    for ((transport, depth), (rates, trips, exits, kicks)) in variants.iter().zip(&mut results) {
        let middle = median(rates);
        let (least, greatest) = (rates[0], rates[rates.len() - 1]);
        let trip = median(trips);
        let name = format!("{transport:?}").to_lowercase();
        let spread = format!("{middle:.0} ({least:.0} to {greatest:.0})");
        let trips = format!("{trip:.0} ({:.0} to {:.0})", trips[0], trips[trips.len() - 1]);
        println!("{name:<9} {depth:>5}   {spread:<39}   {exits:<13.6}   {kicks:<5}   {trips}");
    }
    Ok(())
}
