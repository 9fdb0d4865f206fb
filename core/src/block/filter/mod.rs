//! The layers of a [`Stack`](super::stack::Stack), and what a layer has to be.
//!
//! | module | layer |
//! |---|---|
//! | `layer` | none: what a layer has to be, and what it has below it |
//! | `pass_through` | does nothing: what to begin with |
//!
//! A layer sees every request of a device on its way to the disk, and every completion on its way back. Each method
//! has a default that passes on what it is given, so that a layer says only what it does differently. It may
//!
//! * change a result, in `poll` and `submit`, in what was added to `done`;
//! * end a request itself: it adds the completion, and does not pass the request on;
//! * hold a request back: it keeps a [`HeldRequest`](super::held::HeldRequest), counts the request as taken, and passes
//!   it on in a later `poll`. It says when in [`FilterQueue::deadline`], and the worker may sleep until then;
//! * pass a request on once more after it has completed below: it takes the completion out of `done`;
//! * split a request: it asks for more slots below ([`Filter::depth_below`]), and keeps a list of its own of what
//!   completes there.
mod layer;
mod pass_through;

pub(super) use layer::Base;
pub use layer::{Below, Filter, FilterQueue};
pub use pass_through::PassThrough;
