//! Lists whose length is chosen from outside, such as by a front end with the size of a queue: a lack of memory for one
//! is an error, and must not end the process with all its other devices.
use std::collections::TryReserveError;

/// An empty list with room for `count` entries.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn with_capacity<T>(count: usize) -> Result<Vec<T>, TryReserveError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)?;
    Ok(list)
}

/// A list of `count` times `value`.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn filled<T: Clone>(value: T, count: usize) -> Result<Box<[T]>, TryReserveError> {
    let mut list = with_capacity(count)?;
    list.resize(count, value);
    Ok(list.into_boxed_slice())
}
