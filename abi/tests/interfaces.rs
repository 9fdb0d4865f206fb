//! A plugin offers any set of interfaces: those of Pollux by their kind, others by the name of their table.
use pollux_abi::{
    __private::StableAbi,
    block::{Block, BlockInfo, BlockQueue, Completions, EIO, Error, OpenContext, Request},
    block_v1::{BlockV1, POLLUX_BLOCK_OPEN_PROBE},
    plugin::{InterfaceTable, PluginDescriptor, Provides},
};
use std::{ffi::c_void, slice};

struct Disk;
struct DiskQueue;

#[derive(serde::Deserialize)]
struct Options {
    size: u64,
}

impl Block for Disk {
    type Options = Options;
    type Queue = DiskQueue;

    fn open(options: Options, _context: &OpenContext) -> Result<Self, Error> {
        if options.size == 0 { Err(Error::with_errno(EIO, "no size")) } else { Ok(Disk) }
    }
    fn info(&self) -> BlockInfo {
        BlockInfo::new(1 << 20)
    }
    fn open_queue(&self, _index: u32, _depth: u32) -> Result<DiskQueue, Error> {
        Ok(DiskQueue)
    }
}

impl BlockQueue for DiskQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        requests.iter().for_each(|request| done.success(request.token()));
        requests.len()
    }
    fn poll(&mut self, _done: &mut Completions) {}
}

/// An interface that Pollux knows nothing of.
#[repr(C)]
#[derive(StableAbi)]
pub struct ClockV1 {
    struct_size: u32,
    reserved0: u32,
    ticks: extern "C" fn(start: u64) -> u64,
}

impl InterfaceTable for ClockV1 {
    const NAME: &'static str = "clock/1";
}

struct Clock;

impl Provides<ClockV1> for Clock {
    const TABLE: ClockV1 = ClockV1 { struct_size: size_of::<ClockV1>() as u32, reserved0: 0, ticks };
}

extern "C" fn ticks(start: u64) -> u64 {
    start + 1
}

pollux_abi::export_plugin! { name: "both", ClockV1: Clock, block: Disk }

/// The tables of the plugin with their names.
fn offered() -> Vec<(&'static str, *const c_void)> {
    // SAFETY: the function returns a static descriptor, whose list and names are statics, too.
    let list = unsafe {
        let descriptor: &PluginDescriptor = &*__pollux_plugin::pollux_plugin();
        slice::from_raw_parts(descriptor.interfaces, descriptor.interface_count)
    };
    // SAFETY: as above.
    list.iter().map(|interface| (unsafe { interface.name.as_str() }, interface.table)).collect()
}

#[test]
fn each_interface_is_an_entry_with_its_own_table() {
    let offered = offered();
    assert_eq!(offered.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["clock/1", "block/1"]);
    // SAFETY: the tables are statics of these types.
    let (clock, block) = unsafe { (&*offered[0].1.cast::<ClockV1>(), &*offered[1].1.cast::<BlockV1>()) };
    assert_eq!((clock.ticks)(41), 42);
    assert_eq!(block.struct_size as usize, size_of::<BlockV1>());
}

#[test]
fn names_and_types_are_where_sources_of_before_look_for_them() {
    fn is<T>(_: &T) {}
    let error: pollux_abi::error::Error = pollux_abi::block::Error::new("no");
    is::<pollux_abi::block::Error>(&error);
    let _: Option<pollux_abi::segment::Segment> = None::<pollux_abi::block::Segment>;
    let _: Option<pollux_abi::segment::Segment> = None::<pollux_abi::block_v1::Segment>;
    let _: Option<pollux_abi::memory_region::MemoryRegion> = None::<pollux_abi::block::MemoryRegion>;
    let _: Option<pollux_abi::memory_region::MemoryRegion> = None::<pollux_abi::block_v1::MemoryRegion>;
    let _: fn() -> BlockV1 = || pollux_abi::block::table::<Disk>();
    use pollux_abi::block::{EINVAL, ENOTSUP, EROFS};
    assert_eq!((EIO, EINVAL, EROFS, ENOTSUP, POLLUX_BLOCK_OPEN_PROBE, BlockV1::NAME), (5, 22, 30, 95, 2, "block/1"));
}
