//! The layouts that plugins were compiled with: size, alignment and offsets of every record that crosses the boundary,
//! as a C compiler gave them for the header of the release that froze them.
use pollux_abi::{block_v1::*, host_v1::*, memory_region::MemoryRegion, plugin::*, segment::Segment, text::*};
use std::mem::{align_of, offset_of, size_of};

macro_rules! assert_layout {
    ($record:ty: $size:literal bytes, aligned to $alignment:literal; $($field:ident $offset:literal),+ $(,)?) => {
        assert_eq!(size_of::<$record>(), $size, "size of {}", stringify!($record));
        assert_eq!(align_of::<$record>(), $alignment, "alignment of {}", stringify!($record));
        $(assert_eq!(offset_of!($record, $field), $offset, "{}.{}", stringify!($record), stringify!($field));)+
    };
}

#[test]
fn records_are_laid_out_as_they_were_when_they_were_frozen() {
    assert_layout!(
        Text: 16 bytes, aligned to 8;
        data 0, length 8,
    );
    assert_layout!(
        TextBuffer: 24 bytes, aligned to 8;
        data 0, capacity 8, length 16,
    );
    assert_layout!(
        HostV1: 64 bytes, aligned to 8;
        struct_size 0, log_level 4, context 8, log 16, changed 24, reserved 32,
    );
    assert_layout!(
        Interface: 24 bytes, aligned to 8;
        name 0, table 16,
    );
    assert_layout!(
        PluginDescriptor: 96 bytes, aligned to 8;
        struct_size 0, descriptor_version 4, name 8, version 24, interfaces 40, interface_count 48, initialize 56,
        reserved 64,
    );
    assert_layout!(
        Segment: 16 bytes, aligned to 8;
        base 0, length 8,
    );
    assert_layout!(
        MemoryRegion: 64 bytes, aligned to 8;
        guest_address 0, base 8, length 16, file 24, flags 28, file_offset 32, page_size 40, reserved 48,
    );
    assert_layout!(
        BlockRequest: 64 bytes, aligned to 8;
        operation 0, flags 4, token 8, offset 16, length 24, segments 32, segment_count 40, reserved0 44, reserved 48,
    );
    assert_layout!(
        BlockCompletion: 16 bytes, aligned to 8;
        token 0, result 8, reserved 12,
    );
    assert_layout!(
        BlockCompletions: 16 bytes, aligned to 8;
        entries 0, capacity 8, count 12,
    );
    assert_layout!(
        BlockInfo: 144 bytes, aligned to 8;
        capacity 0, identity_device 8, identity_object 16, maximum_discard 24, maximum_write_zeroes 32,
        logical_block_size 40, physical_block_size 44, minimum_io_size 48, optimal_io_size 52, operations 56,
        flags 60, maximum_transfer 64, maximum_segments 68, discard_alignment 72, maximum_queues 76, reserved 80,
    );
    assert_layout!(
        BlockOpen: 80 bytes, aligned to 8;
        host 0, name 8, options 24, flags 40, reserved0 44, reserved 48,
    );
    assert_layout!(
        BlockQueueHandle: 32 bytes, aligned to 8;
        queue 0, wake_fd 8, reserved0 12, reserved 16,
    );
    assert_layout!(
        BlockV1: 112 bytes, aligned to 8;
        struct_size 0, reserved0 4, open 8, close 16, describe 24, statistics 32, memory_add 40, memory_remove 48,
        queue_open 56, queue_start 64, submit 72, poll 80, arm 88, queue_stop 96, queue_close 104,
    );
}
