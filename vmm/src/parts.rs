//! The parts of a machine that stay from one run of it to the next.
use crate::{attached::Attached, boot::cpuid::CpuidTemplate, error::Error, exits::ExitCounters, spec::MachineSpec};
use kvm_ioctls::Kvm;
use pollux_core::{log_budget::LogBudget, memory::GuestMemory};
use std::{io, sync::Arc};
use vmm_sys_util::errno::Error as Errno;

/// What every run is made from.
pub(crate) struct Parts {
    pub(crate) spec: MachineSpec,
    pub(crate) kvm: Kvm,
    pub(crate) memory: GuestMemory,
    pub(crate) cpuid: CpuidTemplate,
    pub(crate) devices: Vec<Attached>,
    pub(crate) exits: Vec<Arc<ExitCounters>>,
    /// For lines that the guest causes by resetting the machine.
    pub(crate) lines: Arc<LogBudget>,
}

impl Parts {
    pub(crate) fn system(&self, action: &'static str, source: io::Error) -> Error {
        Error::System { machine: self.spec.name.clone(), action, source }
    }

    pub(crate) fn kvm_failed(&self, action: &'static str) -> impl Fn(Errno) -> Error + use<> {
        let machine = self.spec.name.clone();
        move |source| Error::Kvm { machine: machine.clone(), action, source }
    }
}
