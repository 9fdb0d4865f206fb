//! What a front end takes of this process has bounds: it is refused beyond them, in words that name the bound, and all
//! others go on.
use pollux_testing::{
    blk::wait_for,
    disk::Behaviour,
    neighbours::Neighbours,
    raw_front_end::{RawFrontEnd, RawGuest, single_region, words32},
};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    sync::{Arc, Mutex},
};
use tracing_subscriber::fmt::MakeWriter;
use vhost::{VhostUserMemoryRegionInfo, vhost_user::message::FrontendReq as Request};

/// A half of what one front end may map, in bytes.
const HALF: u64 = 1 << 43;

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Log;
    fn make_writer(&'w self) -> Log {
        self.clone()
    }
}

/// A front end that has mapped all that it may, and the one that has its guest ready: does its device still start, with
/// the largest queue that there is?
#[test]
fn a_front_end_that_maps_all_it_can_takes_nothing_from_others() {
    let log = Log::default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).init();
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "bounds", Behaviour::Inline);
    let (ready, guest) = (RawFrontEnd::acknowledged(&both.path), RawGuest::new());
    let mut steps = guest.steps(0);
    let (last, enable, _) = steps.pop().expect("steps");
    for (request, payload, files) in &steps {
        assert_eq!(ready.ask(*request, payload, files), Some(0), "{request:?}");
    }
    assert_eq!(ready.ask(Request::SET_VRING_NUM, &words32(&[1, 32768]), &[]), Some(0));

    // SAFETY: the name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"endless".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(HALF).expect("a length");
    let region = |index: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: index * HALF,
        memory_size: HALF,
        userspace_addr: index * HALF,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    // Not more than the system lets a process have, either.
    let greedy: Vec<_> = (0..8).map(|_| RawFrontEnd::acknowledged(&both.path)).collect();
    for front_end in &greedy {
        let answers = [0, 1, 2]
            .map(|index| front_end.ask(Request::ADD_MEM_REG, &single_region(&region(index)), &[file.as_raw_fd()]));
        assert!(answers[2] == Some(1), "a third half: {answers:?}");
    }
    let said = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(said.contains("a front end may have 17592186044416 bytes of mapped memory files at a time"), "{said}");
    assert!(said.contains("all front ends together may have 105553116266496 bytes of mapped"), "{said}");

    assert_eq!(ready.ask(last, &enable, &[]), Some(0), "its guest's disk starts");
    both.neighbour_works();
    drop(greedy);
    wait_for("what they had", || {
        let again = RawFrontEnd::acknowledged(&both.path);
        (again.ask(Request::ADD_MEM_REG, &single_region(&region(0)), &[file.as_raw_fd()])? == 0).then_some(())
    });
    drop(ready);
    both.all_work();
}
