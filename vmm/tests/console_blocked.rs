//! A console that nobody reads, or does not read fast enough, holds up the guest and nobody else: the machine still
//! stops when it is told to, and it does not wait for a reader at its start.
#![allow(unsafe_code)] // mkfifo(3), fcntl(2), ioctl(2)

mod common;

use common::kvm_is_there;
use pollux_core::memory::GuestMemory;
use pollux_test_guest::{PATIENCE, TestGuest, machine_spec};
use pollux_vmm::{Boot, ConsoleSpec, Exit, Machine, MachineSpec, RawGuest, Shutdown, VcpuSpec, kvm_regs, kvm_sregs};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Instant,
};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

/// Where the programs of the vCPUs lie: one page of the test guest's memory that its tables leave free.
const PROGRAMS: u64 = 0x2_1000;
const PROGRAM_BYTES: u64 = 16;
/// The page of the pipe; it holds as many bytes.
const PIPE_BYTES: libc::c_int = 4096;

/// vCPU 1 writes to the serial port for ever, vCPU 0 reads its line status for ever.
#[derive(Debug)]
struct Chatter(Arc<TestGuest>);

impl RawGuest for Chatter {
    fn load(&self, memory: &GuestMemory) -> io::Result<()> {
        self.0.load(memory)?;
        // in al, dx and out dx, al; then back to it.
        for (address, program) in [(PROGRAMS, [0xec, 0xeb, 0xfd]), (PROGRAMS + PROGRAM_BYTES, [0xee, 0xeb, 0xfd])] {
            memory.map().write_slice(&program, GuestAddress(address)).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn registers(&self, vcpu: usize, registers: &mut kvm_regs, system: &mut kvm_sregs) {
        self.0.registers(vcpu, registers, system);
        registers.rip = PROGRAMS + vcpu as u64 * PROGRAM_BYTES;
        (registers.rax, registers.rdx) = (b'x'.into(), [0x3fd, 0x3f8][vcpu]);
    }
}

/// A pipe with a name.
struct Pipe {
    path: PathBuf,
    _folder: TempDir,
}

impl Pipe {
    fn new() -> Pipe {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console");
        let text = CString::new(path.as_os_str().as_bytes()).expect("made");
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o600) }, 0, "{}", io::Error::last_os_error());
        Pipe { path, _folder: folder }
    }

    /// A reader that does not read, of a pipe as small as can be.
    fn reader(&self) -> File {
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path).expect("it opens");
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) }, PIPE_BYTES);
        reader
    }
}

fn machine(console: &Path) -> Machine {
    let guest = TestGuest::new(&[]).expect("the test guest compiles");
    let boot = Boot::Raw(Arc::new(Chatter(guest.clone())));
    let console = ConsoleSpec::File(console.to_owned());
    let vcpus = vec![VcpuSpec::default(); 2];
    Machine::new(MachineSpec { boot, console, vcpus, ..machine_spec(&guest) }).expect("a machine")
}

/// Runs the machine on a thread of its own, which a test that fails can leave behind.
fn run(mut machine: Machine, shutdown: &Shutdown) -> mpsc::Receiver<Result<Exit, String>> {
    let (sender, receiver) = mpsc::channel();
    let shutdown = shutdown.clone();
    std::thread::spawn(move || sender.send(machine.run(&shutdown).map_err(|error| error.to_string())));
    receiver
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

fn is_full(pipe: &File) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: one integer is written.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut bytes) }, 0);
    bytes == PIPE_BYTES
}

/// Whether both vCPU threads sleep in the kernel. In the guest they would be running.
fn vcpus_sleep() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("a folder").flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(vcpu") && stat.contains(") S ")).count() == 2
}

#[test]
fn a_full_pipe_does_not_keep_the_machine_from_stopping() {
    if !kvm_is_there() {
        return;
    }
    let pipe = Pipe::new();
    let reader = pipe.reader();
    let shutdown = Shutdown::new().expect("made");
    let exit = run(machine(&pipe.path), &shutdown);
    wait_for("a full pipe", || is_full(&reader));
    // One in its write, the other waiting for the serial port that the first holds.
    wait_for("both vCPUs to be stuck", vcpus_sleep);
    shutdown.request();
    assert_eq!(exit.recv_timeout(PATIENCE).expect("the machine stops"), Ok(Exit::Stopped(None)));
}

#[test]
fn a_pipe_without_a_reader_is_refused() {
    if !kvm_is_there() {
        return;
    }
    let pipe = Pipe::new();
    let exit = run(machine(&pipe.path), &Shutdown::new().expect("made"));
    let message = exit.recv_timeout(PATIENCE).expect("nobody waits for a reader").expect_err("it fails");
    assert!(
        message.contains(pipe.path.to_str().expect("UTF-8")) && message.contains("start what reads it first"),
        "{message}"
    );
}
