//! Memory that another process owns: mapped with care, and survived when its owner takes it away.
use pollux_core::memory::{
    ForeignRegion, GuestMemory, MemoryError,
    foreign::{ForeignError, ForeignMapping, file_identity},
    guard,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::{FileExt, OpenOptionsExt},
            net::UnixStream,
            process::ExitStatusExt,
        },
    },
    process::{Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

/// A file in memory of `bytes` bytes, made with further flags.
fn memfd(bytes: u64, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string, and the descriptor that comes back is new.
    let file = unsafe {
        match libc::memfd_create(c"foreign".as_ptr(), libc::MFD_CLOEXEC | flags) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    file.set_len(bytes)?;
    Ok(file)
}

fn file(bytes: u64) -> File {
    memfd(bytes, 0).expect("a memory file")
}

fn map(file: &File, offset: u64, length: u64) -> ForeignMapping {
    ForeignMapping::map(file, offset, length, true).expect("mapping")
}

fn store(mapping: &ForeignMapping, offset: u64, value: u8) {
    assert!((offset as usize) < mapping.len());
    // SAFETY: inside of the mapping, which nobody has a reference into.
    unsafe { mapping.as_ptr().add(offset as usize).write_volatile(value) }
}

fn load(mapping: &ForeignMapping, offset: u64) -> u8 {
    assert!((offset as usize) < mapping.len());
    // SAFETY: as above.
    unsafe { mapping.as_ptr().add(offset as usize).read_volatile() }
}

fn byte_of(file: &File, offset: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte of the file");
    byte[0]
}

#[test]
fn mapping_and_file_are_the_same_bytes_at_any_offset() {
    let file = file(5 * PAGE);
    for (offset, length) in [(0, PAGE), (PAGE, 4 * PAGE), (PAGE + 5, 1), (PAGE - 1, 2), (17, 3 * PAGE)] {
        let mapping = map(&file, offset, length);
        assert_eq!((mapping.len() as u64, mapping.page_size() as u64), (length, PAGE));
        assert!(mapping.is_writable());
        for at in [0, length - 1] {
            store(&mapping, at, 0xa5);
            assert_eq!(byte_of(&file, offset + at), 0xa5, "written at {at} of {length} bytes at {offset}");
            file.write_all_at(&[0x5a], offset + at).expect("write");
            assert_eq!(load(&mapping, at), 0x5a, "read at {at} of {length} bytes at {offset}");
        }
        assert!(!mapping.is_damaged());
    }
}

#[test]
fn a_file_is_known_by_its_inode() {
    let one = file(PAGE);
    let again = one.try_clone().expect("a second descriptor");
    assert_eq!(file_identity(&one).expect("identity"), file_identity(&again).expect("identity"));
    assert_ne!(file_identity(&one).expect("identity"), file_identity(&file(PAGE)).expect("identity"));
}

#[test]
fn a_range_that_is_not_in_the_file_is_refused() {
    let file = file(3 * PAGE);
    let refused = |offset, length| ForeignMapping::map(&file, offset, length, true).expect_err("refused");
    assert!(matches!(refused(0, 0), ForeignError::Empty));
    for (offset, length) in [(u64::MAX, 1), (u64::MAX - 1, u64::MAX), (1 << 63, 1), (1, i64::MAX as u64)] {
        assert!(matches!(refused(offset, length), ForeignError::Overflow { .. }), "{length} at {offset}");
    }
    let message = refused(2 * PAGE, PAGE + 1).to_string();
    assert_eq!(
        message,
        "the file of a memory region has 12288 bytes, and the region needs 12289 (4097 at offset 8192)"
    );
    assert!(matches!(refused(0, i64::MAX as u64), ForeignError::Short { .. }));
    assert!(ForeignMapping::map(&file, 2 * PAGE, PAGE, true).is_ok(), "up to the last byte");
}

#[test]
fn a_descriptor_of_no_memory_is_refused_by_what_it_is() {
    let (socket, _peer) = UnixStream::pair().expect("sockets");
    let (pipe, _writer) = io::pipe().expect("pipe");
    // SAFETY: the descriptor that comes back is new.
    let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).expect(path);
    let cases = [
        (File::from(OwnedFd::from(socket)), "a socket"),
        (File::from(OwnedFd::from(pipe)), "a pipe"),
        (File::open("/").expect("directory"), "a directory"),
        (open("/dev/null"), "a character device"),
        (open("/dev/zero"), "a character device"),
        (File::from(event), "not a file of any file system"),
    ];
    for (file, kind) in cases {
        let message = ForeignMapping::map(&file, 0, PAGE, true).expect_err(kind).to_string();
        assert!(message.starts_with(&format!("the descriptor of a memory region is {kind}")), "{message}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_for_it_is_refused() {
    let named = tempfile::NamedTempFile::new().expect("file");
    named.as_file().set_len(PAGE).expect("size");
    let readable = File::open(named.path()).expect("open for reading");
    let error = ForeignMapping::map(&readable, 0, PAGE, true).expect_err("refused");
    assert_eq!(error.to_string(), "the file of a memory region is not open for reading and writing");
    let mapping = ForeignMapping::map(&readable, 0, PAGE, false).expect("for reading it is");
    assert_eq!((load(&mapping, 0), mapping.is_writable()), (0, false));

    let mut options = OpenOptions::new();
    let writable = options.write(true).open(named.path()).expect("open for writing");
    let name_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(named.path()).expect("open as name");
    for file in [writable, name_only] {
        let error = ForeignMapping::map(&file, 0, PAGE, false).expect_err("refused");
        assert_eq!(error.to_string(), "the file of a memory region is not open for reading");
    }

    let sealed = memfd(PAGE, libc::MFD_ALLOW_SEALING).expect("a memory file");
    // SAFETY: the call touches no memory.
    assert_eq!(unsafe { libc::fcntl(sealed.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }, 0);
    let error = ForeignMapping::map(&sealed, 0, PAGE, true).expect_err("refused");
    assert!(matches!(error, ForeignError::Sealed), "{error}");
}

#[test]
fn losing_the_file_under_a_writing_thread_damages_that_mapping_alone() {
    let event = guard::damage_event().expect("event");
    let count = guard::damage_count();
    let lost_file = file(16 * PAGE);
    let lost = map(&lost_file, 0, 16 * PAGE);
    let kept_file = file(16 * PAGE);
    let kept = [map(&kept_file, 0, 8 * PAGE), map(&kept_file, 8 * PAGE, 8 * PAGE)];
    let (rounds, stop) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                for page in 0..16 {
                    store(&lost, page * PAGE + 8, page as u8 + 1);
                }
                rounds.store(true, Ordering::Release);
            }
        });
        wait_until("the thread writes", || rounds.load(Ordering::Acquire));
        assert!(!lost.is_damaged());
        lost_file.set_len(4 * PAGE).expect("shrink");
        wait_until("the loss is noticed", || lost.is_damaged());
        rounds.store(false, Ordering::Release);
        wait_until("the thread goes on writing", || rounds.load(Ordering::Acquire));
        stop.store(true, Ordering::Release);
    });
    assert!(guard::damage_count() > count);
    let mut waiting = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    assert_eq!(unsafe { libc::poll(&mut waiting, 1, 0) }, 1, "the event is signalled");
    for page in 0..4 {
        store(&lost, page * PAGE, 0x77);
        assert_eq!(byte_of(&lost_file, page * PAGE), 0x77, "page {page} is still the file's");
    }
    lost_file.set_len(16 * PAGE).expect("grow");
    assert_eq!((load(&lost, 5 * PAGE + 8), byte_of(&lost_file, 5 * PAGE + 8)), (6, 0), "what was lost stays lost");
    assert!(lost.is_damaged(), "for good");
    for (index, mapping) in kept.iter().enumerate() {
        assert!(!mapping.is_damaged());
        store(mapping, 7 * PAGE, 0x66);
        assert_eq!(byte_of(&kept_file, (index as u64 * 8 + 7) * PAGE), 0x66);
    }
}

#[test]
fn a_mapping_that_is_read_keeps_its_protection_when_damaged() {
    let named = tempfile::NamedTempFile::new().expect("file");
    named.as_file().set_len(2 * PAGE).expect("size");
    let mapping = ForeignMapping::map(&File::open(named.path()).expect("open"), PAGE + 1, 8, false).expect("mapping");
    named.as_file().set_len(0).expect("shrink");
    assert_eq!(load(&mapping, 0), 0);
    assert!(mapping.is_damaged());
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| range_of(line).contains(&(mapping.as_ptr() as usize))).expect("still mapped");
    assert!(line.contains(" r--p "), "{line}");
}

/// The addresses of a line of /proc/self/maps.
fn range_of(line: &str) -> std::ops::Range<usize> {
    let (range, _) = line.split_once(' ').expect("fields");
    let (start, end) = range.split_once('-').expect("a range");
    let number = |text| usize::from_str_radix(text, 16).expect("hexadecimal");
    number(start)..number(end)
}

#[test]
fn a_thousand_mappings_come_and_go_while_others_fault() {
    const CYCLES: u64 = 1000;
    thread::scope(|scope| {
        for thread in 0..3u64 {
            scope.spawn(move || {
                let kept_file = file(4 * PAGE);
                for cycle in 0..CYCLES {
                    // Sizes differ, so that start and end of two mappings would not fit together.
                    let pages = 1 + (cycle * 7 + thread) % 13;
                    let lost_file = file(pages * PAGE);
                    let before = map(&kept_file, 0, 2 * PAGE);
                    let lost = map(&lost_file, 0, pages * PAGE);
                    let after = map(&kept_file, 2 * PAGE, 2 * PAGE);
                    let rest = cycle % pages;
                    lost_file.set_len(rest * PAGE).expect("shrink");
                    store(&lost, rest * PAGE, 1);
                    store(&lost, (pages - 1) * PAGE, 2);
                    assert!(lost.is_damaged());
                    for (mapping, offset) in [(&before, 0), (&after, 2 * PAGE)] {
                        for at in [0, 2 * PAGE - 1] {
                            store(mapping, at, cycle as u8);
                            assert_eq!(byte_of(&kept_file, offset + at), cycle as u8, "still the file's");
                        }
                        assert!(!mapping.is_damaged());
                    }
                }
            });
        }
    });
}

#[test]
fn huge_pages_are_mapped_and_replaced_whole() {
    let Some((_reserved, file)) = huge_file(3) else {
        eprintln!("SKIPPED: huge pages of foreign memory: no huge pages of 2M are free, and none can be reserved");
        return;
    };
    let whole = map(&file, 0, 3 * HUGE);
    let part = map(&file, HUGE + PAGE, 3 * PAGE);
    let odd = map(&file, HUGE - 1, 2);
    for mapping in [&whole, &part, &odd] {
        assert_eq!(mapping.page_size() as u64, HUGE);
    }
    store(&part, 0, 0x11);
    assert_eq!(load(&whole, HUGE + PAGE), 0x11);
    store(&odd, 0, 0x22);
    assert_eq!(load(&whole, HUGE - 1), 0x22);
    file.set_len(HUGE).expect("shrink");
    store(&whole, HUGE + 3 * PAGE, 0x33);
    store(&whole, 3 * HUGE - 1, 0x44);
    assert_eq!((load(&whole, HUGE - 1), load(&whole, HUGE + PAGE)), (0x22, 0), "the first page is kept, no other");
    assert_eq!((load(&whole, HUGE + 3 * PAGE), load(&whole, 3 * HUGE - 1)), (0x33, 0x44));
    assert!(whole.is_damaged() && !part.is_damaged() && !odd.is_damaged());
    assert_eq!((load(&part, 0), load(&odd, 1)), (0, 0));
    assert!(part.is_damaged() && odd.is_damaged());
    assert_eq!(load(&odd, 0), 0x22);
    let region = |mapping| ForeignRegion {
        guest_address: 0,
        mapping: Arc::new(mapping),
        file: Arc::new(file.try_clone().expect("descriptor")),
        file_offset: 0,
    };
    let memory = GuestMemory::from_foreign(vec![region(map(&file, 0, HUGE))]).expect("memory");
    assert_eq!(memory.regions()[0].page_size, HUGE);
}

/// A file of that many huge pages; they are reserved if need be, until the first of the two is dropped.
fn huge_file(pages: u64) -> Option<(Option<Reserved>, File)> {
    let allocated = || {
        let file = memfd(pages * HUGE, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB).ok()?;
        // SAFETY: the call touches no memory of ours.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, (pages * HUGE) as libc::off_t) };
        (result == 0).then_some(file)
    };
    if let Some(file) = allocated() {
        return Some((None, file));
    }
    let before = fs::read_to_string(Reserved::PATH).ok()?;
    let count: u64 = before.trim().parse().ok()?;
    fs::write(Reserved::PATH, (count + pages).to_string()).ok()?;
    let reserved = Reserved { before };
    Some((Some(reserved), allocated()?))
}

struct Reserved {
    before: String,
}

impl Reserved {
    const PATH: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.before);
    }
}

#[test]
fn guest_memory_is_made_of_mappings_and_keeps_them() {
    let file = Arc::new(file(8 * PAGE));
    let region = |guest_address, offset, length| ForeignRegion {
        guest_address,
        mapping: Arc::new(map(&file, offset, length)),
        file: file.clone(),
        file_offset: offset,
    };
    let memory = GuestMemory::from_foreign(vec![region(1 << 32, 0, 4 * PAGE), region(0, 4 * PAGE, PAGE + 1)]);
    let memory = memory.expect("memory, in any order");
    let told: Vec<_> = memory.regions().iter().map(|one| (one.guest_address, one.length, one.file_offset)).collect();
    assert_eq!(told, [(0, PAGE as usize + 1, 4 * PAGE), (1 << 32, 4 * PAGE as usize, 0)]);
    assert!(memory.regions().iter().all(|one| one.file == file.as_raw_fd() && one.page_size == PAGE));

    let mut translator = memory.translator();
    drop(memory);
    let host = translator.translate((1 << 32) + 5, 1).expect("in the second region");
    // SAFETY: one byte of memory that the translator keeps.
    unsafe { host.write_volatile(0x42) };
    assert_eq!(byte_of(&file, 5), 0x42);
    assert_eq!(translator.translate(PAGE, 2), None, "beyond the first region");
    assert!(!translator.memory().is_damaged());
    file.set_len(PAGE).expect("shrink");
    let host = translator.translate(PAGE, 1).expect("in the first region");
    // SAFETY: as above.
    unsafe { host.write_volatile(1) };
    assert!(translator.memory().is_damaged() && translator.memory().clone().is_damaged());
}

#[test]
fn guest_memory_refuses_regions_that_make_no_sense() {
    let file = Arc::new(file(8 * PAGE));
    let region = |guest_address, offset, writable| ForeignRegion {
        guest_address,
        mapping: Arc::new(ForeignMapping::map(&file, offset, 4 * PAGE, writable).expect("mapping")),
        file: file.clone(),
        file_offset: offset,
    };
    let refused = |regions| GuestMemory::from_foreign(regions).expect_err("refused").to_string();
    let overlap = refused(vec![region(0x13000, 0, true), region(0x10000, 0, true)]);
    assert_eq!(overlap, "guest memory regions overlap: 0x4000 bytes at 0x10000 reach into the one at 0x13000");
    assert!(refused(vec![region(0, 0, true), region(0, 0, true)]).contains("overlap"));
    assert!(refused(vec![region(u64::MAX - PAGE, 0, true)]).contains("wraps around"));
    assert!(refused(vec![region(0, 12, true)]).contains("offset 12 of its file is inside a page"));
    assert!(refused(vec![region(0, 0, false)]).contains("read-only"));
    let adjacent: Result<_, MemoryError> = GuestMemory::from_foreign(vec![region(0x4000, 0, true), region(0, 0, true)]);
    assert_eq!(adjacent.expect("neighbours may touch").regions().len(), 2);
    let none = GuestMemory::from_foreign(Vec::new()).expect("no memory at all");
    assert!(none.regions().is_empty() && none.translator().translate(0, 1).is_none() && !none.is_damaged());
}

/// Says which part of `child` this process is to play, if it was started by `in_child`.
const PART: &str = "POLLUX_TEST_SIGBUS";

/// Runs a part of `child` in a process of its own.
fn in_child(part: &str) -> ExitStatus {
    let test_binary = std::env::current_exe().expect("own path");
    let mut command = Command::new(test_binary);
    let output = command.args(["--exact", "child", "--nocapture"]).env(PART, part).output().expect("child");
    println!("{part}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output.status
}

static UNGUARDED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn exit_with_7(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo_t; _exit is async-signal-safe.
    unsafe {
        let is_right = (*info).si_addr().cast() == UNGUARDED.load(Ordering::Relaxed);
        libc::_exit(if is_right { 7 } else { 8 });
    }
}

/// Not a test of its own: what the tests below run in other processes. It ends by SIGBUS or a status of its own.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    // SAFETY: plain system calls; no core file is to be left behind.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
        if let "previous handler" = &*part {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = exit_with_7;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
        if let "default" | "sent, default" = &*part {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
        if let "sent, ignored" = &*part {
            libc::signal(libc::SIGBUS, libc::SIG_IGN);
        }
    }
    if part == "no more mappings" {
        // The second lies right below the first, of which the kernel makes one: the first page of the upper is cut off
        // on both sides.
        let lost = file(16 * PAGE);
        let (_upper, lower) = (map(&lost, 8 * PAGE, 8 * PAGE), map(&lost, 0, 8 * PAGE));
        use_up_mappings();
        lost.set_len(4 * PAGE).expect("shrink");
        store(&lower, 5 * PAGE, 1);
        assert!(lower.is_damaged() && load(&lower, 5 * PAGE) == 1 && load(&lower, 6 * PAGE) == 0);
        // SAFETY: the end.
        unsafe { libc::_exit(7) };
    }
    let guarded_file = file(2 * PAGE);
    let guarded = map(&guarded_file, 0, 2 * PAGE);
    guarded_file.set_len(0).expect("shrink");
    store(&guarded, PAGE, 1);
    assert!(guarded.is_damaged());
    // SAFETY: the access is meant to fail; errno is this thread's own.
    unsafe {
        *libc::__errno_location() = libc::EXDEV;
        store(&guarded, 0, 1);
        assert_eq!(*libc::__errno_location(), libc::EXDEV, "the handler keeps errno");
        if part.starts_with("sent") {
            libc::raise(libc::SIGBUS);
            libc::_exit(9);
        }
        let file = file(PAGE);
        let flags = libc::MAP_SHARED;
        let address = libc::mmap(std::ptr::null_mut(), PAGE as usize, libc::PROT_READ, flags, file.as_raw_fd(), 0);
        assert_ne!(address, libc::MAP_FAILED);
        UNGUARDED.store(address.cast(), Ordering::Relaxed);
        file.set_len(0).expect("shrink");
        address.cast::<u8>().read_volatile();
        libc::_exit(9);
    }
}

#[test]
fn the_guard_works_when_the_process_has_no_more_mappings() {
    assert_eq!(in_child("no more mappings").code(), Some(7));
}

/// Makes mappings until there are no more, of one that is cut into pieces.
fn use_up_mappings() {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").expect("/proc");
    let pages = 2 * limit.trim().parse::<usize>().expect("a number");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, of which nothing is accessed.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), pages * PAGE as usize, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        let cut = |page: usize| libc::mprotect(start.byte_add(page * PAGE as usize), PAGE as usize, libc::PROT_READ);
        assert!((1..pages - 1).step_by(2).any(|page| cut(page) != 0), "there is a limit");
        // A cut takes two more; the last one is of a kind that the kernel makes one of no other.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        while libc::mmap(std::ptr::null_mut(), PAGE as usize, libc::PROT_NONE, flags, -1, 0) != libc::MAP_FAILED {}
    }
}

#[test]
fn a_bus_error_elsewhere_still_ends_the_process() {
    for part in ["handler of Rust's runtime", "default"] {
        assert_eq!(in_child(part).signal(), Some(libc::SIGBUS), "{part}");
    }
}

#[test]
fn a_bus_error_elsewhere_reaches_the_handler_that_was_there_before() {
    assert_eq!(in_child("previous handler").code(), Some(7));
}

#[test]
fn a_sigbus_that_was_sent_does_what_it_did_before() {
    for part in ["sent, handler of Rust's runtime", "sent, default"] {
        assert_eq!(in_child(part).signal(), Some(libc::SIGBUS), "{part}");
    }
    assert_eq!(in_child("sent, ignored").code(), Some(9), "ignored");
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}
