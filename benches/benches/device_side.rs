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
    ring::{Ring, SegmentList, SplitRing},
    testing::{driver::SplitDriver, rig::prepared_queue},
};
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

fn ring_alone(criterion: &mut Criterion) {
    for (name, indirect) in [("ring", false), ("ring, indirect", true)] {
        let mut group = criterion.benchmark_group(name);
        for depth in DEPTHS {
            let mut prepared = Prepared::new(depth, indirect);
            let config = prepared.driver.config();
            let mut ring = SplitRing::new(&config, prepared.memory.translator(), true).expect("a ring");
            let mut data = prepared.memory.translator();
            group.throughput(Throughput::Elements(depth as u64));
            group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
                bencher.iter_custom(|rounds| prepared.measure(rounds, |_| ring_turn(&mut ring, &mut data)));
            });
        }
        group.finish();
    }
}

fn ring_blk_null(criterion: &mut Criterion) {
    let null = backend("null", r#"{"size": 1073741824}"#);
    for (name, indirect) in [("ring + blk + null", false), ("ring + blk + null, indirect", true)] {
        let mut group = criterion.benchmark_group(name);
        for depth in DEPTHS {
            let mut prepared = Prepared::new(depth, indirect);
            let mut queue = prepared_queue(null.clone(), &prepared.memory, prepared.driver.config());
            let device = |driver: &mut SplitDriver| {
                while usize::from(driver.used_count()) < depth {
                    queue.poll();
                }
            };
            let mut device = device;
            group.throughput(Throughput::Elements(depth as u64));
            group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
                bencher.iter_custom(|rounds| prepared.measure(rounds, &mut device));
            });
        }
        group.finish();
    }
}

fn configuration() -> Criterion {
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        core_affinity::set_for_current(core);
    }
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
}

criterion_group! { name = device_side; config = configuration(); targets = ring_alone, ring_blk_null }
criterion_main!(device_side);
