//! Between the host and the code of a plugin's author: a panic ends here.
//!
//! No panic may unwind into the host, whose frames are of another compilation. The call fails instead, the message
//! having gone to the log ([`host`](crate::host)).
use crate::{
    error::{EIO, Error},
    text::TextBuffer,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; a panic becomes `-EIO`.
pub(crate) fn guard(body: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(-EIO)
}

/// As [`guard`], with the reason written to `error`.
pub(crate) fn guard_with_reason(error: *mut TextBuffer, body: impl FnOnce() -> Result<(), Error>) -> i32 {
    let panicked = |_| Err(Error::with_errno(EIO, "the plugin panicked (the log has its message)"));
    match catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(panicked) {
        Ok(()) => 0,
        Err(reason) => {
            // SAFETY: the host passes a buffer or null.
            if let Some(buffer) = unsafe { error.as_mut() } {
                // SAFETY: the buffer is the host's.
                unsafe { buffer.write(&reason.to_string()) };
            }
            reason.result()
        }
    }
}

/// What a worker calls again and again, such as a queue. After a panic its state is not to be trusted any more.
pub(crate) struct Guarded<T> {
    pub(crate) value: T,
    has_panicked: bool,
}

impl<T> Guarded<T> {
    pub(crate) fn new(value: T) -> Self {
        Guarded { value, has_panicked: false }
    }

    /// Runs a hot call, unless one has panicked before: `-EIO` then.
    #[inline]
    pub(crate) fn call(&mut self, body: impl FnOnce(&mut T) -> i32) -> i32 {
        if self.has_panicked {
            return -EIO;
        }
        catch_unwind(AssertUnwindSafe(|| body(&mut self.value))).unwrap_or_else(|_| {
            self.has_panicked = true;
            -EIO
        })
    }
}
