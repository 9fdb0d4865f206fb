//! What one request costs the device: the ring alone, and ring, block device model and the `null` plugin through its
//! real shared library.
//!
//! One thread plays driver and device in turn, and only the device's turns are timed: there is no cache line that
//! travels between cores. That is measured elsewhere.
#![allow(missing_docs)]
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pollux_abi::block_v1::Segment;
use pollux_benches::{Prepared, backend};
use pollux_core::{
    queue::BATCH,
    ring::{PackedRing, Ring, SegmentList, SplitRing},
    worker::Task,
};
use pollux_driver::RingKind;
use pollux_testing::rig::prepared_queue;
use std::{hint::black_box, ptr::null_mut, time::Duration};

const DEPTHS: [usize; 4] = [1, 8, 32, 128];

/// Takes and returns all there is, with the work on each chain that every device has to do.
fn ring_turn(ring: &mut impl Ring, data: &mut pollux_core::memory::Translator) {
    let empty = Segment { base: null_mut(), length: 0 };
    let (mut inline, mut overflow, mut heads) = ([empty; 6], [empty; 8], [0; 64]);
    loop {
        let count = ring.pop(&mut heads).expect("a legal ring");
        if count == 0 {
            return;
        }
        for &head in &heads[..count] {
            let mut list = SegmentList::new(&mut inline, &mut overflow);
            let chain = ring.walk(head, data, &mut list).expect("a legal chain");
            black_box(list.into_slice());
            ring.push_used(head, chain.writable_bytes as u32);
        }
        ring.publish();
        black_box(ring.needs_signal());
    }
}

/// A group of the benchmark, with the kind of ring and the shape of the chains.
fn name(what: &str, kind: RingKind, indirect: bool) -> String {
    let kind = if kind == RingKind::Packed { "packed " } else { "" };
    format!("{kind}{what}{}", if indirect { ", indirect" } else { "" })
}

const ALL: [(RingKind, bool); 4] =
    [(RingKind::Split, false), (RingKind::Split, true), (RingKind::Packed, false), (RingKind::Packed, true)];

fn ring_alone(criterion: &mut Criterion) {
    for (kind, indirect) in ALL {
        match kind {
            RingKind::Split => one_ring_alone::<SplitRing>(criterion, kind, indirect),
            RingKind::Packed => one_ring_alone::<PackedRing>(criterion, kind, indirect),
        }
    }
}

fn one_ring_alone<R: Ring>(criterion: &mut Criterion, kind: RingKind, indirect: bool) {
    let mut group = criterion.benchmark_group(name("ring", kind, indirect));
    for depth in DEPTHS {
        let mut prepared = Prepared::new(kind, depth, indirect);
        let config = prepared.driver.config();
        let mut ring = R::new(&config, prepared.memory.translator(), true).expect("a ring");
        let mut data = prepared.memory.translator();
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            bencher.iter_custom(|rounds| prepared.measure(rounds, || ring_turn(&mut ring, &mut data)));
        });
    }
    group.finish();
}

fn poll(queue: &mut dyn Task, turns: usize) {
    for _ in 0..turns {
        queue.poll();
    }
}

fn ring_blk_null(criterion: &mut Criterion) {
    let null = backend("null", r#"{"size": 1073741824}"#);
    for (kind, indirect) in ALL {
        let mut group = criterion.benchmark_group(name("ring + blk + null", kind, indirect));
        for depth in DEPTHS {
            let mut prepared = Prepared::new(kind, depth, indirect);
            let mut queue = prepared_queue(kind, null.clone(), &prepared.memory, prepared.driver.config());
            // A turn takes a batch, and `null` ends it within the turn.
            let turns = depth.div_ceil(BATCH);
            group.throughput(Throughput::Elements(depth as u64));
            group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
                bencher.iter_custom(|rounds| prepared.measure(rounds, || poll(&mut *queue, turns)));
            });
        }
        group.finish();
    }
}

fn configuration() -> Criterion {
    if let Some(&cpu) = pollux_core::cpus::current().last() {
        pollux_core::cpus::pin(cpu).expect("it runs there");
    }
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
}

criterion_group! { name = device_side; config = configuration(); targets = ring_alone, ring_blk_null }
criterion_main!(device_side);
