//! Guest memory lies in files that are memory and nothing else: a page that has to come from a disk or a program holds
//! up the worker that accesses it, and every device that it serves.
use pollux_core::{
    device::blk::Blk,
    memory::guard::FileSystem,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    disk::{self, Behaviour},
    front_end::serve_files,
    raw_front_end::{RawFrontEnd, single_region},
    rig::options,
};
use std::{fs::File, os::fd::AsRawFd};
use vhost::{VhostUserMemoryRegionInfo, vhost_user::message::FrontendReq as Request};

#[test]
fn only_files_that_are_memory_are_mapped_unless_the_configuration_allows_others() {
    let on_disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    let in_memory = tempfile::tempfile_in("/dev/shm").expect("a file");
    if FileSystem::of(&on_disk).expect("a file system").is_memory() {
        println!("SKIPPED: the folder for tests is in memory: {}", env!("CARGO_TARGET_TMPDIR"));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let worker = Worker::spawn("io0", None, IdlePolicy::Adaptive).expect("a worker");
    let answers = [false, true].map(|any_file| {
        let name = format!("files-{any_file}");
        let path = folder.path().join(&name);
        let stats = StatsSegment::anonymous(1).expect("statistics");
        let backend = disk::open(&name, 1 << 20, Behaviour::Inline).expect("a disk");
        let _server = serve_files(Blk::new(options(&name, 1, &[worker.handle()]), backend, &stats), &path, any_file);
        let raw = RawFrontEnd::acknowledged(&path);
        let add = |file: &File, guest: u64| {
            file.set_len(1 << 20).expect("a length");
            let region = VhostUserMemoryRegionInfo {
                guest_phys_addr: guest,
                memory_size: 1 << 20,
                userspace_addr: guest,
                mmap_offset: 0,
                mmap_handle: file.as_raw_fd(),
            };
            raw.ask(Request::ADD_MEM_REG, &single_region(&region), &[file.as_raw_fd()])
        };
        [add(&in_memory, 0), add(&on_disk, 1 << 20)]
    });
    assert_eq!(answers, [[Some(0), Some(1)], [Some(0), Some(0)]]);
}
