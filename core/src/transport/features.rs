//! Which features are offered, and which of them a driver may accept (virtio 1.3, 2.2).
use virtio_bindings::{
    virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// The features that all our devices offer on every transport.
pub const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_PACKED
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Those that a device behind our own registers offers: a driver resets a queue by a register (virtio 1.3, 2.6.1).
///
/// Over vhost-user, the front end has the registers. It can stop a ring and restart it, as a reset does, but no message
/// announces that it will: QEMU 10.0 passes the feature on to the guests of vhost-user-blk, and when one resets a
/// queue, QEMU reports success without telling the back end, which carries on with the old ring.
pub const REGISTER_FEATURES: u64 = TRANSPORT_FEATURES | 1 << VIRTIO_F_RING_RESET;

/// Why the features that a driver has accepted are not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FeatureError {
    #[error("accepted features that were not offered: {0:#x}")]
    NotOffered(u64),
    /// A driver that does not accept VERSION_1 speaks the legacy interface, which we do not offer (virtio 1.3, 6.1).
    #[error("speaks only the legacy interface, which is not offered")]
    Legacy,
    /// Features beyond the 32 bits that a legacy driver can see (virtio 1.3, 2.2.3).
    #[error("accepted features {0:#x}, which need VIRTIO_F_VERSION_1, without that one")]
    BeyondLegacy(u64),
}

/// Whether a driver may accept these features (virtio 1.3, 2.2).
pub(crate) fn check_features(accepted: u64, offered: u64) -> Result<(), FeatureError> {
    match accepted & !offered {
        0 if accepted & 1 << VIRTIO_F_VERSION_1 == 0 => Err(FeatureError::Legacy),
        0 => Ok(()),
        unknown => Err(FeatureError::NotOffered(unknown)),
    }
}

/// Whether the driver behind a front end may accept these features. Unlike on our own PCI and MMIO transports, it may
/// be a legacy driver, without VERSION_1: the legacy registers are the front end's, as those of QEMU's transitional
/// device are, and all that remains for us is a split ring, given by three addresses, in the byte order of the guest
/// (virtio 1.3, 2.7.3), which is our own unless a front end says otherwise.
pub(crate) fn check_front_end_features(accepted: u64, offered: u64) -> Result<(), FeatureError> {
    match check_features(accepted, offered) {
        Err(FeatureError::Legacy) if cfg!(target_endian = "little") => match accepted >> 32 << 32 {
            0 => Ok(()),
            beyond => Err(FeatureError::BeyondLegacy(beyond)),
        },
        checked => checked,
    }
}
