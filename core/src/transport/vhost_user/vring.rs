//! One virtqueue as the front end describes it, message by message (vhost-user document, "Ring states").
use super::table::MemoryTable;
use crate::ring::QueueConfig;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserVringAddr;
use vmm_sys_util::eventfd::EventFd;

/// What is known about the driver's kicks.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Nothing yet: the ring is stopped.
    #[default]
    Unset,
    /// There are none: the ring must be polled.
    Polled,
    /// They come by this event.
    Event(Arc<EventFd>),
}

/// Where a ring is, in the front end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UserAddresses {
    descriptors: u64,
    available: u64,
    used: u64,
}

/// One virtqueue.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    pub(super) addresses: Option<UserAddresses>,
    /// Guest address under which changes of the used ring are logged, if they are.
    pub(super) log_used: Option<u64>,
    /// Where the ring continues, as in [`Ring::base`](crate::ring::Ring::base). `None`: at its beginning.
    pub(super) base: Option<u32>,
    pub(super) kick: Kick,
    pub(super) call: Option<Arc<EventFd>>,
    pub(super) error: Option<EventFd>,
    pub(super) enabled: bool,
    /// Whether a worker serves it.
    pub(super) running: bool,
    /// A worker has served it on this connection.
    pub(super) has_run: bool,
    /// It could not be started with its current settings.
    pub(super) failed: bool,
}

impl Vring {
    /// Applies SET_VRING_ADDR.
    pub(super) fn set_addresses(&mut self, message: &VhostUserVringAddr) -> Result<(), String> {
        let VhostUserVringAddr { descriptor: descriptors, available, used, flags, log, .. } = *message;
        let addresses = UserAddresses { descriptors, available, used };
        if self.running && self.addresses != Some(addresses) {
            return Err("it moves a ring that is running".into());
        }
        self.addresses = Some(addresses);
        // VHOST_VRING_F_LOG
        self.log_used = (flags & 1 != 0).then_some(log);
        self.failed = false;
        Ok(())
    }

    /// Whether it should be served: started by a kick descriptor, and enabled. No kick has to arrive: requests that the
    /// driver has already kicked for are in the ring.
    pub(super) fn is_ready(&self, enabled_by_default: bool) -> bool {
        !self.running
            && !self.failed
            && (self.enabled || enabled_by_default)
            && !matches!(self.kick, Kick::Unset)
            && self.size != 0
            && self.addresses.is_some()
    }

    /// Where the ring is in the guest's memory. A part that is nowhere in the table gets an address where nothing can
    /// be, so that building the ring fails with an error that names the part.
    pub(super) fn config(&self, table: &MemoryTable) -> QueueConfig {
        let guest = |address: Option<u64>| address.and_then(|user| table.guest_address(user)).unwrap_or(u64::MAX);
        QueueConfig {
            size: self.size,
            descriptors: guest(self.addresses.map(|addresses| addresses.descriptors)),
            driver_area: guest(self.addresses.map(|addresses| addresses.available)),
            device_area: guest(self.addresses.map(|addresses| addresses.used)),
        }
    }
}
