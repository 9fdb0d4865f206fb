//! Boots a kernel with block devices, its console on standard output: a smoke test of machine and kernel, and the
//! smallest program that puts all parts together.
//!
//! `boot KERNEL [OPTION...] WORDS-OF-THE-COMMAND-LINE...`, with the options
//! `--initrd FILE`, `--cpus N`, `--memory MIB`, `--hugepages MIB`, `--console FILE`, `--exit-on-reboot` and
//! `--disk pci|mmio PLUGIN-FILE PLUGIN-OPTIONS-AS-JSON QUEUES`, as often as there are disks.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pollux_core::device::blk::{Blk, BlkOptions};
use pollux_core::plugin::{BlockBackend, OpenOptions, Registry};
use pollux_core::stats::StatsSegment;
use pollux_core::worker::{IdlePolicy, Worker};
use pollux_vmm::{Boot, ConsoleSpec, KernelSpec, Machine, MachineSpec, Reboot, Shutdown, Transport, VcpuSpec};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Disk {
    transport: Transport,
    plugin: PathBuf,
    options: String,
    queues: usize,
}

fn run() -> Result<(), Box<dyn Error>> {
    // First, so that no thread is without the handlers.
    let shutdown = Shutdown::on_signals()?;
    let (spec, disks) = arguments()?;
    let workers =
        [Worker::spawn("io0", None, IdlePolicy::Adaptive)?, Worker::spawn("io1", None, IdlePolicy::Adaptive)?];
    let stats = StatsSegment::anonymous(64)?;
    let mut plugins = Registry::default();
    let mut machine = Machine::new(spec)?;
    for (index, disk) in disks.into_iter().enumerate() {
        let plugin = plugins.load(&disk.plugin)?;
        let open = OpenOptions { json: disk.options, ..Default::default() };
        let backend = BlockBackend::open(&plugin, &format!("disk{index}"), &open)?;
        let options = BlkOptions {
            name: format!("blk{index}"),
            serial: String::new(),
            queues: disk.queues,
            queue_size: 256,
            workers: workers.iter().map(Worker::handle).collect(),
            latency_sample: 1,
        };
        let location = machine.attach(Box::new(Blk::new(options, backend, &stats)), disk.transport)?;
        println!("blk{index} is at {location:x?}");
    }
    let exit = machine.run(&shutdown)?;
    println!("the run ended: {exit:?}");
    for (index, counts) in machine.exit_counts().into_iter().enumerate() {
        println!("vCPU {index}: {counts}");
    }
    for queue in stats.records() {
        println!("{}: {} requests, {} kicks avoided", queue.name(), queue.requests(), queue.kicks_avoided());
    }
    Ok(())
}

fn arguments() -> Result<(MachineSpec, Vec<Disk>), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let image = PathBuf::from(words.next().ok_or("which kernel?")?);
    let mut kernel = KernelSpec { image, initrd: None, command_line: String::new() };
    let mut disks = Vec::new();
    let mut spec = MachineSpec {
        name: "guest".to_owned(),
        vcpus: vec![VcpuSpec::default()],
        memory_bytes: 256 << 20,
        hugepages: None,
        boot: Boot::Kernel(kernel.clone()),
        console: ConsoleSpec::Terminal,
        reboot: Reboot::Restart,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants another word"));
        match word.as_str() {
            "--initrd" => kernel.initrd = Some(value()?.into()),
            "--cpus" => spec.vcpus = vec![VcpuSpec::default(); value()?.parse()?],
            "--memory" => spec.memory_bytes = value()?.parse::<u64>()? << 20,
            "--hugepages" => spec.hugepages = Some(value()?.parse::<u64>()? << 20),
            "--console" => spec.console = ConsoleSpec::File(value()?.into()),
            "--exit-on-reboot" => spec.reboot = Reboot::Exit,
            "--disk" => disks.push(Disk {
                transport: if value()? == "mmio" { Transport::Mmio } else { Transport::Pci },
                plugin: Path::new(&value()?).to_owned(),
                options: value()?,
                queues: value()?.parse()?,
            }),
            word => kernel.command_line = format!("{} {word}", kernel.command_line),
        }
    }
    spec.boot = Boot::Kernel(kernel);
    Ok((spec, disks))
}
