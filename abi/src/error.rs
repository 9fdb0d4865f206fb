//! Why a plugin says no, and the errnos that its requests end with.
use std::fmt;

/// `errno` of an I/O error, Linux's number.
pub const EIO: i32 = 5;
/// `errno` of a bad argument, Linux's number.
pub const EINVAL: i32 = 22;
/// `errno` of a write to a read-only medium, Linux's number.
pub const EROFS: i32 = 30;
/// `errno` of an operation that is not offered, Linux's number.
pub const ENOTSUP: i32 = 95;

/// Why a `[control]` call failed: a message for the operator, and an errno.
#[derive(Clone, Debug)]
pub struct Error {
    errno: i32,
    message: String,
}

impl Error {
    /// An error with `EINVAL`, for a bad configuration: `message` says what is wrong and what to write instead.
    pub fn new(message: impl fmt::Display) -> Self {
        Error { errno: EINVAL, message: message.to_string() }
    }

    /// An error with an errno of its own, such as `EBUSY` for a medium that is in use.
    pub fn with_errno(errno: i32, message: impl fmt::Display) -> Self {
        Error { errno, message: message.to_string() }
    }

    /// An operating system's error; `what` says what was tried, such as "cannot open /x".
    pub fn from_io(what: impl fmt::Display, error: std::io::Error) -> Self {
        Error { errno: error.raw_os_error().unwrap_or(EIO), message: format!("{what}: {error}") }
    }

    /// What a function of an interface returns: negative, whatever errno the author gave.
    pub(crate) fn result(&self) -> i32 {
        -self.errno.max(1)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
