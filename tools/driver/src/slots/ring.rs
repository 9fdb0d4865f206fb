//! What a ring with fixed places for its requests can do.
use pollux_core::ring::QueueConfig;

/// The buffers of one request, all in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Guest-physical address of the header of 16 bytes.
    pub header: u64,
    /// Guest-physical address of the data.
    pub data: u64,
    /// Length of the data in bytes; 0: there is none.
    pub length: u32,
    /// Whether the device writes the data.
    pub device_writes: bool,
    /// Guest-physical address of the status byte.
    pub status: u64,
}

/// Descriptors that a chain takes at most: header, data, status.
pub const CHAIN_LENGTH: u16 = 3;

/// How a device broke the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// It gave back what it does not have.
    #[error("it returned the descriptor chain {0}, which is not in flight")]
    NotInFlight(u32),
    /// The used index ran ahead of the available index.
    #[error("its used index jumped by {0} with {1} requests in flight")]
    UsedIndex(u16, u16),
    /// It said that more requests had been used than could have been.
    #[error("it returned a run of {0} requests by one element, of which there can be {1}")]
    Run(u16, u16),
}

/// A virtqueue as a driver works with it.
///
/// A request is known by its slot, a number below the number of slots that the ring was made for.
pub trait Ring: Send {
    /// Puts the request of `slot`, which is not in flight, into the ring. The device sees it after the next
    /// [`show`](Self::show).
    fn add(&mut self, slot: u16, chain: &Chain);
    /// Shows the device all requests added. It need not look before [`publish`](Self::publish).
    fn show(&mut self);
    /// Shows the device all requests added. Returns whether it wants a kick for those shown since the last call.
    fn publish(&mut self) -> bool;
    /// The slot of the next request that the device has given back.
    ///
    /// # Errors
    /// The device broke the ring.
    fn pop(&mut self) -> Result<Option<u16>, RingError>;
    /// Asks for no interrupts. Cheap, and to be called again as requests come back: an event index comes round.
    fn silence(&mut self);
    /// Asks for an interrupt. Returns whether there is nothing to pop, so that one will come.
    fn arm(&mut self) -> bool;
    /// Where the ring is, for the device.
    fn config(&self) -> QueueConfig;
    /// What SET_VRING_BASE tells the device: the first request it has not finished. `None`: where a new ring begins, or
    /// what the device's own record says.
    fn base(&self) -> Option<u16>;
    /// After the loss of a device that left no record of what it had finished: names the requests in flight again,
    /// from [`base`](Self::base) on. `false`: this ring does not know them any more.
    fn replay(&mut self) -> bool;
    /// Number of requests that the device has.
    fn in_flight(&self) -> u16;
}
