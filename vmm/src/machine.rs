//! The machine: memory and devices that stay, and one run after another from power-on to power-off or reset.
pub use crate::error::Error;
use crate::{
    attached::Attached,
    boot::cpuid::CpuidTemplate,
    console::{Console, ConsoleSpec},
    cycle::{Cycle, CycleEnd},
    exits::ExitCounts,
    layout::{MEMORY_BYTES_MIN, MMIO_DEVICES_MAX, VCPUS_MAX, memory_regions},
    mmio,
    parts::Parts,
    pci,
    shutdown::Shutdown,
    spec::{MachineSpec, Reboot},
    vcpu,
    verbs::{Changes, Devices},
    vm,
};
use kvm_ioctls::Kvm;
use pollux_core::{
    cpus,
    device::DeviceModel,
    log_budget::LogBudget,
    memory::GuestMemory,
    transport::{VirtioDevice, mmio::MmioTransport, pci::PciTransport},
};
use std::{
    io,
    sync::{Arc, Mutex},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine, which was configured to end then ([`Reboot::Exit`]).
    Reboot,
    /// A stop was requested: by a signal (its number), the user at the console or the program.
    Stopped(Option<i32>),
}

/// How a guest's driver reaches a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A function of the PCI Express bus, with MSI-X.
    Pci,
    /// A virtio-mmio register block with a line of the I/O APIC.
    Mmio,
}

/// Where a device was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// On PCI bus 0.
    Pci {
        /// Device number; the function number is 0.
        device: u8,
    },
    /// On the memory bus.
    Mmio {
        /// Guest-physical address of its registers.
        address: u64,
        /// Line of the I/O APIC.
        line: u32,
    },
}

/// A virtual machine.
///
/// Made and driven by one thread: attach everything, then [`Machine::run`]. Other threads reach its devices by
/// [`Machine::devices`] meanwhile.
pub struct Machine {
    parts: Parts,
    changes: Changes,
}

impl Machine {
    /// Makes a machine: checks the description, opens KVM and reserves guest memory. Nothing runs yet.
    ///
    /// # Errors
    /// Each names what is missing or wrong.
    pub fn new(spec: MachineSpec) -> Result<Machine, Error> {
        let machine = || spec.name.clone();
        let kvm =
            Kvm::new().map_err(|source| Error::OpenKvm { machine: machine(), source: io::Error::from(source) })?;
        if let Some(what) = vm::missing_capability(&kvm) {
            return Err(Error::OldKvm { machine: machine(), what });
        }
        check(&spec, kvm.get_max_vcpus()).map_err(|reason| Error::Spec { machine: machine(), reason })?;
        let ranges: Vec<_> =
            memory_regions(spec.memory_bytes).into_iter().map(|(start, bytes)| (start.0, bytes)).collect();
        let memory = GuestMemory::create(&ranges, spec.hugepages)
            .map_err(|source| Error::Memory { machine: machine(), source })?;
        let cpuid = CpuidTemplate::new(&kvm, spec.vcpus.len()).map_err(|source| Error::Kvm {
            machine: machine(),
            action: "read the processor features that KVM supports",
            source,
        })?;
        let exits = spec.vcpus.iter().map(|_| Arc::default()).collect();
        let changes = Changes::new().map_err(|source| Error::System {
            machine: machine(),
            action: "make an event for media that change",
            source,
        })?;
        let (devices, lines) = (Vec::new(), Arc::new(LogBudget::of_guest()));
        let parts = Parts { spec, kvm, memory, cpuid, devices, exits, lines };
        Ok(Machine { parts, changes })
    }

    /// What it was made from.
    pub fn spec(&self) -> &MachineSpec {
        &self.parts.spec
    }

    /// The guest's memory, which lives as long as the machine: backends are told of it before the start.
    pub fn memory(&self) -> &GuestMemory {
        &self.parts.memory
    }

    /// Attaches a device. Guests find PCI functions in the order of attachment, and virtio-mmio devices too.
    ///
    /// # Errors
    /// The bus is full or the device has too many queues for it.
    pub fn attach(&mut self, model: Box<dyn DeviceModel>, transport: Transport) -> Result<Location, Error> {
        let name = model.name().to_owned();
        let failed = |reason: String| Error::Attach { device: name.clone(), reason };
        let device = VirtioDevice::new(model, self.parts.memory.clone())
            .map_err(|error| failed(format!("cannot make its queues: {error}")))?;
        let change = device.change_event();
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let no_event = |error| failed(format!("cannot make an interrupt event: {error}"));
        let location = match transport {
            Transport::Pci => {
                // Place 0 is the host bridge's.
                let place = 1 + self.count(|attached| matches!(attached, Attached::Pci { .. }));
                if place >= pci::PLACES {
                    return Err(failed(format!("the PCI bus is full; it has room for {} devices", pci::PLACES - 1)));
                }
                // One for each queue and one for configuration changes.
                let vectors: Vec<_> =
                    (0..=device.queue_count()).map(|_| event()).collect::<Result<_, _>>().map_err(no_event)?;
                let transport =
                    PciTransport::new(device, vectors.clone()).map_err(|error| failed(error.to_string()))?;
                self.parts.devices.push(Attached::Pci { place, transport: Arc::new(Mutex::new(transport)), vectors });
                Location::Pci { device: place as u8 }
            }
            Transport::Mmio => {
                let index = self.count(|attached| matches!(attached, Attached::Mmio { .. }));
                if index >= MMIO_DEVICES_MAX {
                    return Err(failed(format!(
                        "there are interrupt lines for {MMIO_DEVICES_MAX} devices on mmio; use pci"
                    )));
                }
                let line = event().map_err(no_event)?;
                let transport = Arc::new(Mutex::new(MmioTransport::new(device, line.clone())));
                self.parts.devices.push(Attached::Mmio { index, transport, line });
                let place = mmio::place(index);
                Location::Mmio { address: place.address, line: place.line }
            }
        };
        if let (Some(change), Some(attached)) = (change, self.parts.devices.last()) {
            self.changes
                .watch(attached.handle(), change)
                .map_err(|error| failed(format!("cannot watch for changes of its medium: {error}")))?;
        }
        Ok(location)
    }

    /// The devices attached so far, with the verbs for the program that runs the machine. They may be used by other
    /// threads while this one runs it, and keep no part of it alive.
    pub fn devices(&self) -> Devices {
        Devices::new(self.parts.devices.iter().map(Attached::handle).collect())
    }

    /// Runs the machine until its guest powers off or a stop is requested. Blocks. When it returns, no vCPU runs, every
    /// device is reset with its requests drained, and the terminal has its settings back.
    ///
    /// # Errors
    /// The kernel cannot be loaded, KVM refuses something, or a vCPU broke down.
    pub fn run(&mut self, shutdown: &Shutdown) -> Result<Exit, Error> {
        vcpu::prepare_kicks().map_err(|source| self.parts.system("install the vCPU signal", source))?;
        let mut console =
            Console::open(&self.parts.spec.console).map_err(|source| self.parts.system("open the console", source))?;
        loop {
            let exit = self.run_once(&mut console, shutdown);
            self.parts.devices.iter().for_each(Attached::reset);
            if let Some(exit) = exit? {
                return Ok(exit);
            }
            if self.parts.lines.may_log(&self.parts.spec.name) {
                tracing::info!(machine = self.parts.spec.name, "the guest resets the machine");
            }
        }
    }

    /// From power-on until the vCPUs have stopped. `None` if the machine is to start again.
    fn run_once(&self, console: &mut Console, shutdown: &Shutdown) -> Result<Option<Exit>, Error> {
        let cycle = Cycle::start(&self.parts, console)?;
        let exit = cycle.serve(console, shutdown, &self.changes).map(|end| match end {
            CycleEnd::PowerOff => Some(Exit::PowerOff),
            CycleEnd::Reset if self.parts.spec.reboot == Reboot::Exit => Some(Exit::Reboot),
            CycleEnd::Reset => None,
            CycleEnd::Stopped(signal) => Some(Exit::Stopped(signal)),
        });
        if !matches!(exit, Ok(None)) {
            // Draining the devices may take long. Ctrl-C is a signal again by then, so that the user can end it.
            console.restore_terminal();
        }
        drop(cycle);
        exit
    }

    /// The machine with another answer to its guest's resets.
    pub fn with_reboot(mut self, reboot: Reboot) -> Machine {
        self.parts.spec.reboot = reboot;
        self
    }

    /// The machine with another console.
    pub fn with_console(mut self, console: ConsoleSpec) -> Machine {
        self.parts.spec.console = console;
        self
    }

    /// How often each vCPU has left guest mode, since the machine was made. Also callable through
    /// [`Machine::exit_counter`] while the machine runs.
    pub fn exit_counts(&self) -> Vec<ExitCounts> {
        self.parts.exits.iter().map(|counters| counters.snapshot()).collect()
    }

    /// A reader of [`Machine::exit_counts`] for another thread while this one runs the machine.
    pub fn exit_counter(&self) -> impl Fn() -> Vec<ExitCounts> + Send + use<> {
        let exits = self.parts.exits.clone();
        move || exits.iter().map(|counters| counters.snapshot()).collect()
    }

    fn count(&self, is_counted: impl Fn(&Attached) -> bool) -> usize {
        self.parts.devices.iter().filter(|attached| is_counted(attached)).count()
    }
}

/// What is wrong with a description, if anything.
fn check(spec: &MachineSpec, vcpus_max: usize) -> Result<(), String> {
    let vcpus_max = vcpus_max.min(VCPUS_MAX);
    if spec.vcpus.is_empty() || spec.vcpus.len() > vcpus_max {
        return Err(format!("{} vCPUs; this host can give a machine 1 to {vcpus_max}", spec.vcpus.len()));
    }
    if spec.memory_bytes < MEMORY_BYTES_MIN {
        return Err(format!("{} bytes of memory; give it at least {MEMORY_BYTES_MIN}", spec.memory_bytes));
    }
    let page = spec.hugepages.unwrap_or(4096);
    if !page.is_power_of_two() || page < 4096 {
        return Err(format!("{page} bytes is not the size of a page; use 2M or 1G"));
    }
    if !spec.memory_bytes.is_multiple_of(page) {
        return Err(format!("{} bytes of memory are not whole pages of {page} bytes", spec.memory_bytes));
    }
    let usable = cpus::usable();
    if let Some(cpu) = spec.vcpus.iter().filter_map(|vcpu| vcpu.pin).find(|cpu| !usable.contains(cpu)) {
        let why = cpus::obstacle(cpu);
        return Err(format!("a vCPU is pinned to CPU {cpu}, which this process cannot run on: {why}"));
    }
    Ok(())
}
