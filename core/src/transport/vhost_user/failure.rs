//! Why a request of the front end was not carried out.
use super::wire::WireError;

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// It makes no sense: nothing further from this front end can be understood.
    Malformed(String),
    /// It cannot be carried out. The front end is told, if it asks.
    Refused(String),
    /// The connection has failed.
    Wire(WireError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Failure::Wire(error)
    }
}

/// A request that makes no sense is described by its reason alone.
pub(super) fn malformed(reason: impl ToString) -> Failure {
    Failure::Malformed(reason.to_string())
}

/// A request that cannot be carried out, with the reason.
pub(super) fn refused(reason: impl ToString) -> Failure {
    Failure::Refused(reason.to_string())
}
