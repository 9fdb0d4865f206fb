//! A guest for tests and benchmarks: the program in `program/`, which drives a virtio block device from privilege
//! level 3.
//!
//! It works on every KVM, also on those that emulate a guest's kernel code and cannot boot a stock kernel, and with
//! them it is still a real vCPU: notifications, interrupts and exits are KVM's. What it does is set by the plan, what
//! came of it is in the report, both words in guest memory (see [`mailbox`]).
#![forbid(unsafe_code)]

#[path = "../program/mailbox.rs"]
#[allow(missing_docs)] // names say it; the guest's compiler does not ask
pub mod mailbox;

use linux_loader::loader::{Elf, KernelLoader};
use mailbox::{PLAN, REPORT, report};
use pollux_core::memory::GuestMemory;
use pollux_vmm::{
    Boot, ConsoleSpec, Exit, ExitCounts, Machine, MachineSpec, RawGuest, Reboot, Shutdown, VcpuSpec, kvm_regs,
    kvm_segment, kvm_sregs,
};
use std::{
    error::Error,
    io,
    path::Path,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Memory of the guest in bytes.
const MEMORY_BYTES: u64 = 64 << 20;
/// Words of the plan.
const PLAN_WORDS: usize = 16;

/// Where the tables lie. The program's own addresses are in `program/`.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TASK_STATE: u64 = 0x3000;
/// Where the port bitmap begins in the task state, and the last byte of it all.
const PORT_BITMAP: u64 = 0x68;
const TASK_STATE_LIMIT: u32 = PORT_BITMAP as u32 + 0x2000;
const PAGE_TABLES: u64 = 0x1_0000;
const KERNEL_STACK_TOP: u64 = 0x2_0000;

/// How long a test waits for the guest before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The guest, to be given to a [`MachineSpec`] as [`Boot::Raw`].
#[derive(Debug)]
pub struct TestGuest {
    program: &'static [u8],
    entry: AtomicU64,
    plan: [u64; PLAN_WORDS],
    loads: AtomicUsize,
}

impl TestGuest {
    /// The guest with a plan: pairs of a word of [`mailbox::plan`] and its value.
    ///
    /// # Errors
    /// The program cannot be compiled: there is no `rustc`, or no linker.
    pub fn new(words: &[(usize, u64)]) -> io::Result<Arc<TestGuest>> {
        let mut plan = [0; PLAN_WORDS];
        for (word, value) in words {
            plan[*word] = *value;
        }
        Ok(Arc::new(TestGuest { program: program()?, entry: AtomicU64::new(0), plan, loads: AtomicUsize::new(0) }))
    }

    /// How often the machine has loaded it: once per start.
    pub fn loads(&self) -> usize {
        self.loads.load(Ordering::Relaxed)
    }
}

/// A machine with one vCPU for `guest`, whose resets end the run.
pub fn machine_spec(guest: &Arc<TestGuest>) -> MachineSpec {
    MachineSpec {
        name: "test".to_owned(),
        vcpus: vec![VcpuSpec::default()],
        memory_bytes: MEMORY_BYTES,
        hugepages: None,
        boot: Boot::Raw(guest.clone()),
        console: ConsoleSpec::Null,
        reboot: Reboot::Exit,
    }
}

/// A word of the report.
pub fn report(memory: &GuestMemory, word: usize) -> u64 {
    memory.map().read_obj(GuestAddress(REPORT + 8 * word as u64)).expect("the report lies in guest memory")
}

/// What went wrong in the guest, or nothing if it came to its end.
///
/// # Errors
/// The place in the guest's source and its detail, as text.
pub fn outcome(memory: &GuestMemory) -> Result<(), String> {
    match (report(memory, report::ERROR), report(memory, report::DONE)) {
        (0, 1) => Ok(()),
        (0, _) => Err("the guest did not come to its end".to_owned()),
        (line, _) => {
            let word = |word| report(memory, word);
            let (detail, stack, fault) = (word(report::DETAIL), word(report::STACK), word(report::FAULT_ADDRESS));
            let completed = word(report::COMPLETED);
            Err(format!(
                "the guest failed at line {line} (1000 + vector: an exception) after {completed} requests: \
                 {detail:#x}, stack {stack:#x}, fault address {fault:#x}"
            ))
        }
    }
}

/// Waits until the guest has reached a phase; [`go`] lets it go on.
///
/// # Errors
/// The guest has failed or does not get there.
pub fn wait_for_phase(memory: &GuestMemory, phase: u64) -> Result<(), String> {
    let start = Instant::now();
    while report(memory, report::PHASE) < phase {
        if report(memory, report::ERROR) != 0 {
            return outcome(memory);
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("the guest did not reach phase {phase}"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Lets the guest go on from a phase.
pub fn go(memory: &GuestMemory, phase: u64) {
    let address = GuestAddress(PLAN + 8 * mailbox::plan::GO as u64);
    memory.map().write_obj(phase, address).expect("the plan lies in guest memory");
}

/// Runs a machine whose guest's plan is [`ACTION_MEASURE`](mailbox::plan::ACTION_MEASURE), and returns the exits of its
/// first vCPU and the kicks of its driver between the two phases: in steady state.
///
/// # Errors
/// The machine or the guest has failed.
pub fn run_measured(machine: &mut Machine) -> Result<(ExitCounts, u64), Box<dyn Error>> {
    let memory = machine.memory().clone();
    let exit_counts = machine.exit_counter();
    let observed = std::thread::scope(|scope| {
        let observer = scope.spawn(|| {
            wait_for_phase(&memory, 1)?;
            let before = (exit_counts()[0], report(&memory, report::KICKS));
            go(&memory, 1);
            wait_for_phase(&memory, 2)?;
            let after = (exit_counts()[0], report(&memory, report::KICKS));
            go(&memory, 2);
            Ok((after.0.since(&before.0), after.1 - before.1))
        });
        let exit = machine.run(&Shutdown::new()?)?;
        let observed: Result<_, String> = observer.join().map_err(|_| "the observer panicked")?;
        match exit {
            Exit::PowerOff => Ok::<_, Box<dyn Error>>(observed?),
            other => Err(format!("the machine ended by {other:?}").into()),
        }
    })?;
    outcome(&memory)?;
    Ok(observed)
}

impl RawGuest for TestGuest {
    fn load(&self, memory: &GuestMemory) -> io::Result<()> {
        let map = &**memory.map();
        let mut program = io::Cursor::new(self.program);
        let loaded = Elf::load(map, None, &mut program, None).map_err(io::Error::other)?;
        self.entry.store(loaded.kernel_load.0, Ordering::Relaxed);
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.write_tables(memory).map_err(io::Error::other)
    }

    fn registers(&self, _vcpu: usize, registers: &mut kvm_regs, system: &mut kvm_sregs) {
        registers.rip = self.entry.load(Ordering::Relaxed);
        registers.rsp = KERNEL_STACK_TOP;
        registers.rflags = 2;
        system.cs = segment(0x08, 0xb, true);
        let data = segment(0x10, 0x3, false);
        (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
        system.tr =
            kvm_segment { base: TASK_STATE, limit: TASK_STATE_LIMIT, s: 0, g: 0, db: 0, ..segment(0x18, 0xb, false) };
        (system.gdt.base, system.gdt.limit) = (GDT, 6 * 8 - 1);
        (system.idt.base, system.idt.limit) = (IDT, 0xfff);
        system.cr3 = PAGE_TABLES;
        // Protected mode, coprocessor there and checked, paging; physical address extension, SSE; long mode.
        system.cr0 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
        system.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
        system.efer = 1 << 8 | 1 << 10;
    }
}

impl TestGuest {
    fn write_tables(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let write = |address: u64, value: u64| memory.map().write_obj(value, GuestAddress(address));
        // Code and data of level 0, the task state (which sits in the register already), code and data of level 3.
        let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff];
        for (index, descriptor) in gdt.into_iter().enumerate() {
            write(GDT + 8 * index as u64, descriptor)?;
        }
        // The stack of level 0 in the task state.
        write(TASK_STATE + 4, KERNEL_STACK_TOP)?;
        // The bitmap that opens all ports to level 3: there are KVMs that lose IOPL on the way there. It is zeroes, and
        // ends in a byte of ones.
        write(TASK_STATE + 0x60, PORT_BITMAP << 48)?;
        for offset in (PORT_BITMAP..PORT_BITMAP + 0x2000).step_by(8) {
            write(TASK_STATE + offset, 0)?;
        }
        write(TASK_STATE + PORT_BITMAP + 0x2000, 0xff)?;
        // Present, writable, for level 3; the last level's pages are of 2 MiB.
        write(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7)?;
        for gib in 0..4 {
            write(PAGE_TABLES + 0x1000 + 8 * gib, (PAGE_TABLES + 0x2000 + 0x1000 * gib) | 7)?;
        }
        for page in 0..4 * 512 {
            write(PAGE_TABLES + 0x2000 + 8 * page, (page << 21) | 0x87)?;
        }
        for (word, value) in self.plan.iter().enumerate() {
            write(PLAN + 8 * word as u64, *value)?;
            write(REPORT + 8 * word as u64, 0)?;
        }
        Ok(())
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: long.into(),
        db: (!long).into(),
        ..Default::default()
    }
}

/// The compiled program; compiled once per process.
fn program() -> io::Result<&'static [u8]> {
    static PROGRAM: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| compile().map_err(|error| error.to_string())) {
        Ok(program) => Ok(program),
        Err(message) => Err(io::Error::other(message.clone())),
    }
}

fn compile() -> io::Result<Vec<u8>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("program/main.rs");
    let folder = std::env::temp_dir().join(format!("pollux-test-guest-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let output = folder.join("guest");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-name", "guest", "--crate-type", "bin"]);
    // A static program at a fixed address, without libraries and start-up code.
    for option in [
        "panic=abort",
        "opt-level=2",
        "relocation-model=static",
        "link-arg=-nostdlib",
        "link-arg=-nostartfiles",
        "link-arg=-static",
        "link-arg=-no-pie",
    ] {
        command.args(["-C", option]);
    }
    let result = command.arg("-o").arg(&output).arg(&source).output().and_then(|compiled| {
        if compiled.status.success() {
            return std::fs::read(&output);
        }
        let message = String::from_utf8_lossy(&compiled.stderr).into_owned();
        Err(io::Error::other(format!("cannot compile {}: {message}", source.display())))
    });
    std::fs::remove_dir_all(&folder)?;
    result
}
