//! Interrupt routing: lines of the I/O APIC and message-signalled interrupts, both raised through eventfds.
//!
//! KVM numbers interrupts (GSI). The first 24 are the lines of the I/O APIC; every MSI-X vector of every function
//! has one behind them, whose message is set when the guest unmasks the vector.
use crate::layout::IOAPIC_LINES;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_MAX_IRQ_ROUTES, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use vmm_sys_util::{errno::Error as Errno, eventfd::EventFd};

/// What an MSI-X vector sends: an address of the local APICs and the data to write there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

#[derive(Default)]
struct Routes {
    /// How many GSIs were handed out.
    allocated: u32,
    messages: BTreeMap<u32, Message>,
}

/// The interrupt routing of one virtual machine.
pub struct InterruptRouter {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

impl InterruptRouter {
    /// Takes over the routing of a virtual machine that has interrupt controllers.
    pub fn new(vm: Arc<VmFd>) -> Result<InterruptRouter, Errno> {
        let router = InterruptRouter { vm, routes: Mutex::default() };
        router.install(&Routes::default())?;
        Ok(router)
    }

    /// Makes `event` raise a line of the I/O APIC for a moment: an edge.
    pub(crate) fn connect_line(&self, line: u32, event: &EventFd) -> Result<(), Errno> {
        // A signal from before a reset does not concern the new kernel.
        let _ = event.read();
        self.vm.register_irqfd(event, line)
    }

    /// A number for an MSI-X vector; `None` when KVM has no more.
    pub(crate) fn allocate(&self) -> Option<u32> {
        let mut routes = self.lock();
        let gsi = IOAPIC_LINES + routes.allocated;
        if gsi as usize >= KVM_MAX_IRQ_ROUTES {
            return None;
        }
        routes.allocated += 1;
        Some(gsi)
    }

    /// Sets what an MSI-X vector sends.
    pub(crate) fn set_message(&self, gsi: u32, message: Message) -> Result<(), Errno> {
        let mut routes = self.lock();
        let previous = routes.messages.insert(gsi, message);
        if previous == Some(message) {
            return Ok(());
        }
        let result = self.install(&routes);
        if result.is_err() {
            // The table is installed as a whole: a message that KVM refuses must not spoil those of others.
            // KVM has kept the table that it had, so this one goes back as well.
            match previous {
                Some(previous) => routes.messages.insert(gsi, previous),
                None => routes.messages.remove(&gsi),
            };
        }
        result
    }

    /// Makes `event` send the message of `gsi`; if the event was signalled before, at once.
    pub(crate) fn connect(&self, gsi: u32, event: &EventFd) -> Result<(), Errno> {
        self.vm.register_irqfd(event, gsi)
    }

    /// Undoes [`InterruptRouter::connect`]: signals stay in the event from now on.
    pub(crate) fn disconnect(&self, gsi: u32, event: &EventFd) -> Result<(), Errno> {
        self.vm.unregister_irqfd(event, gsi)
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, routes: &Routes) -> Result<(), Errno> {
        let lines = (0..IOAPIC_LINES).map(line_entry);
        let messages = routes.messages.iter().map(|(gsi, message)| message_entry(*gsi, *message));
        let entries: Vec<_> = lines.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Errno::new(libc::ENOSPC))?;
        self.vm.set_gsi_routing(&table)
    }
}

fn line_entry(line: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: line, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = line;
    entry
}

fn message_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}
