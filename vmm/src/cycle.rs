//! One run of the machine: a fresh KVM virtual machine over the memory and devices that stay.
use crate::{
    acpi,
    attached::Attached,
    boot::{self, Entry, registers},
    bus::Bus,
    console::{Console, Typed},
    control::{Control, Ending},
    error::Error,
    irq::InterruptRouter,
    layout::{ECAM_BYTES, ECAM_START, MMIO_STRIDE, PCI_WINDOW_BYTES, PCI_WINDOW_START, SERIAL_LINE, SERIAL_PORT},
    mmio::{self, VirtioMmio},
    parts::Parts,
    pci::{self, Ecam, PciBus, VirtioFunction, Window},
    platform,
    serial::SerialPort,
    shutdown::Shutdown,
    spec::{Boot, RawGuest},
    vcpu::{Vcpu, VcpuThread},
    verbs::Changes,
    vm::Vm,
};
use kvm_ioctls::VcpuFd;
use libc::{POLLIN, pollfd};
use std::{
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    thread,
    time::Duration,
};
use vm_memory::GuestAddress;

/// How long to wait before input is offered again to a serial port that a vCPU held.
const FEED_AGAIN: Duration = Duration::from_millis(10);

/// How long to wait before vCPUs that have not stopped are kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// How a run of the machine ended.
pub(crate) enum CycleEnd {
    PowerOff,
    Reset,
    /// By a signal, if there is a number.
    Stopped(Option<i32>),
}

/// A running machine. Dropping it stops the vCPUs.
pub(crate) struct Cycle {
    machine_name: String,
    control: Arc<Control>,
    serial: Arc<SerialPort>,
    vcpus: Vec<VcpuThread>,
    /// Dropped after the vCPU threads are joined: it keeps the guest's memory mapped.
    _vm: Vm,
}

impl Cycle {
    /// Powers the machine on: builds buses and devices' connections, loads the guest's code, starts the vCPUs.
    pub(crate) fn start(parts: &Parts, console: &Console) -> Result<Cycle, Error> {
        let control = Arc::new(Control::new().map_err(|source| parts.system("make an event", source))?);
        let output = console.output().map_err(|source| parts.system("open the console", source))?;
        let serial = Arc::new(SerialPort::new(output).map_err(|source| parts.system("make the serial port", source))?);
        let vm = Vm::new(&parts.kvm, &parts.memory).map_err(parts.kvm_failed("make a virtual machine"))?;
        let router = InterruptRouter::new(vm.fd().clone()).map_err(parts.kvm_failed("route interrupts"))?;
        let router = Arc::new(router);
        router
            .connect_line(SERIAL_LINE, serial.line())
            .map_err(parts.kvm_failed("connect the serial port's interrupt"))?;
        let mut ports = Bus::new("port");
        platform::insert(&mut ports, &control)?;
        ports.insert(SERIAL_PORT.into()..u64::from(SERIAL_PORT) + 8, serial.clone())?;
        let memory = memory_bus(parts, &vm, &router)?;
        let fds = processors(parts, &vm)?;
        let mut cycle = Cycle { machine_name: parts.spec.name.clone(), control, serial, vcpus: Vec::new(), _vm: vm };
        cycle.spawn(parts, fds, Arc::new(ports), Arc::new(memory))?;
        Ok(cycle)
    }

    /// Serves the console until the run ends, and measures media that report a change. The vCPUs stop when this is
    /// dropped.
    pub(crate) fn serve(
        &self,
        console: &mut Console,
        shutdown: &Shutdown,
        changes: &Changes,
    ) -> Result<CycleEnd, Error> {
        loop {
            if shutdown.is_requested() {
                return Ok(CycleEnd::Stopped(shutdown.signal()));
            }
            if let Some(ending) = self.control.take() {
                return match ending {
                    Ending::PowerOff => Ok(CycleEnd::PowerOff),
                    Ending::Reset => Ok(CycleEnd::Reset),
                    Ending::Failed(source) => Err(Error::Vcpu { machine: self.machine_name.clone(), source }),
                };
            }
            let mut feed_again = None;
            if let Some(input) = console.input()
                && input.is_pending()
            {
                self.serial.clear_drained();
                feed_again = (!input.feed(&self.serial)).then_some(FEED_AGAIN);
            }
            let wants = console.input().map_or((false, false), |input| (input.wants_more(), input.is_pending()));
            let stdin = if wants.0 { libc::STDIN_FILENO } else { -1 };
            let drained = if wants.1 { self.serial.drained_fd() } else { -1 };
            let fds = [shutdown.as_raw_fd(), self.control.as_raw_fd(), stdin, drained, changes.as_raw_fd()];
            let [_, _, typed, _, has_changed] = wait(fds, feed_again);
            if has_changed {
                changes.follow();
            }
            if typed
                && let Some(input) = console.input()
                && input.read() == Typed::Stop
            {
                return Ok(CycleEnd::Stopped(None));
            }
        }
    }

    fn spawn(&mut self, parts: &Parts, fds: Vec<VcpuFd>, ports: Arc<Bus>, memory: Arc<Bus>) -> Result<(), Error> {
        for (index, fd) in fds.into_iter().enumerate() {
            let vcpu = Vcpu {
                index,
                pin: parts.spec.vcpus[index].pin,
                fd,
                ports: ports.clone(),
                memory: memory.clone(),
                control: self.control.clone(),
                exits: parts.exits[index].clone(),
                lines: parts.lines.clone(),
            };
            let thread = VcpuThread::spawn(vcpu).map_err(|source| parts.system("start a vCPU thread", source))?;
            self.vcpus.push(thread);
        }
        Ok(())
    }

    /// Stops the vCPUs and waits until none runs.
    fn stop(&mut self) {
        self.control.stop();
        // All are kicked before any is waited for: one may wait for a lock that another holds in a blocked write to the
        // console. Usually, one kick is enough: it finds the thread in the guest, or makes its next entry return at
        // once. A thread that has not reached its loop yet, or is just about to block, needs another.
        while self.vcpus.iter().filter(|thread| thread.kick()).count() > 0 {
            thread::park_timeout(KICK_AGAIN);
        }
        self.vcpus.drain(..).for_each(VcpuThread::join);
    }
}

impl Drop for Cycle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Which of the descriptors are readable (or broken, which a read will tell); negative ones never are. Returns after
/// `timeout` at the latest, if there is one, or when a signal arrives.
fn wait<const N: usize>(fds: [RawFd; N], timeout: Option<Duration>) -> [bool; N] {
    let mut polls = fds.map(|fd| pollfd { fd, events: POLLIN, revents: 0 });
    let milliseconds = timeout.map_or(-1, |timeout| timeout.as_millis() as libc::c_int);
    // SAFETY: the pointer and count are those of a live array.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    // After an error, EINTR being the only one to expect, the contents mean nothing.
    polls.map(|poll| ready > 0 && poll.revents != 0)
}

/// The memory bus with every virtio device in its place.
fn memory_bus(parts: &Parts, vm: &Vm, router: &Arc<InterruptRouter>) -> Result<Bus, Error> {
    let mut bus = Bus::new("memory");
    let mut pci_bus = PciBus::new();
    for attached in &parts.devices {
        match attached {
            Attached::Pci { place, transport, vectors } => {
                let bar = pci::bar_address(*place);
                let function = VirtioFunction::new(vm.fd(), router, transport.clone(), vectors, bar)
                    .map_err(|source| Error::Function { device: attached.name(), source })?;
                pci_bus.insert(*place, Arc::new(function));
            }
            Attached::Mmio { index, transport, line } => {
                let place = mmio::place(*index);
                router.connect_line(place.line, line).map_err(parts.kvm_failed("connect a virtio-mmio interrupt"))?;
                let device = VirtioMmio::new(vm.fd(), transport.clone(), place.address)
                    .map_err(parts.kvm_failed("register virtio-mmio notifications"))?;
                bus.insert(place.address..place.address + MMIO_STRIDE, Arc::new(device))?;
            }
        }
    }
    let pci_bus = Arc::new(pci_bus);
    bus.insert(ECAM_START..ECAM_START + ECAM_BYTES, Arc::new(Ecam(pci_bus.clone())))?;
    bus.insert(PCI_WINDOW_START..PCI_WINDOW_START + PCI_WINDOW_BYTES, Arc::new(Window(pci_bus)))?;
    Ok(bus)
}

/// Loads the guest's code and makes the vCPUs, ready to run.
fn processors(parts: &Parts, vm: &Vm) -> Result<Vec<VcpuFd>, Error> {
    let failed = parts.kvm_failed("set up a vCPU");
    let mut fds = Vec::new();
    for index in 0..parts.spec.vcpus.len() {
        let fd = vm.fd().create_vcpu(index as u64).map_err(parts.kvm_failed("make a vCPU"))?;
        fd.set_cpuid2(&parts.cpuid.for_vcpu(index)).map_err(&failed)?;
        registers::set_common(&fd).map_err(&failed)?;
        fds.push(fd);
    }
    match &parts.spec.boot {
        Boot::Kernel(_) => {
            let entry = load_kernel(parts)?;
            registers::set_entry(&fds[0], entry).map_err(&failed)?;
        }
        Boot::Raw(guest) => {
            guest.load(&parts.memory).map_err(|source| parts.system("load the raw guest", source))?;
            for (index, fd) in fds.iter().enumerate() {
                set_raw(&**guest, index, fd).map_err(&failed)?;
            }
        }
    }
    Ok(fds)
}

fn load_kernel(parts: &Parts) -> Result<Entry, Error> {
    let Boot::Kernel(kernel) = &parts.spec.boot else { unreachable!("called for kernels only") };
    let failed = |source| Error::Boot { machine: parts.spec.name.clone(), source };
    let memory = &**parts.memory.map();
    let mmio: Vec<_> = parts
        .devices
        .iter()
        .filter_map(|attached| match attached {
            Attached::Mmio { index, .. } => Some(mmio::place(*index)),
            Attached::Pci { .. } => None,
        })
        .collect();
    let rsdp: GuestAddress =
        acpi::write(memory, parts.spec.vcpus.len(), &mmio).map_err(|error| failed(error.into()))?;
    let entry = boot::load(memory, kernel, rsdp).map_err(failed)?;
    registers::write_gdt(memory, entry).map_err(failed)?;
    Ok(entry)
}

fn set_raw(guest: &dyn RawGuest, index: usize, fd: &VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
    let mut registers = fd.get_regs()?;
    let mut system = fd.get_sregs()?;
    guest.registers(index, &mut registers, &mut system);
    fd.set_sregs(&system)?;
    fd.set_regs(&registers)?;
    registers::set_runnable(fd)
}
