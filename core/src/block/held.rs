//! Requests that a layer keeps, to pass them on later or once more.
use pollux_abi::block_v1::BlockRequest;

/// A copy of a request as its layer was given it. Good until the request completes: then its segments are gone.
#[derive(Clone, Copy, Debug)]
pub struct HeldRequest(BlockRequest);

// SAFETY: a request travels with its queue, and the segments that it points to may be used from any thread.
unsafe impl Send for HeldRequest {}

impl HeldRequest {
    /// To be made before the request is passed on: its token is another one after that.
    pub fn new(request: &BlockRequest) -> Self {
        HeldRequest(*request)
    }

    /// The slot by which it is known.
    pub fn slot(&self) -> u32 {
        self.0.token as u32
    }

    /// The request, to be passed on.
    pub fn request(&self) -> BlockRequest {
        self.0
    }
}
