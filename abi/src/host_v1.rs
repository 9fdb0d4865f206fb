//! `host/1`: what the host lends to a plugin. Frozen.
use crate::text::Text;
use abi_stable::StableAbi;
use std::ffi::c_void;

/// Log levels of [`HostV1::log`], as in `syslog(3)`'s order of urgency.
pub const POLLUX_LOG_ERROR: u32 = 1;
/// A warning: service goes on.
pub const POLLUX_LOG_WARN: u32 = 2;
/// A message that an operator wants once per start.
pub const POLLUX_LOG_INFO: u32 = 3;
/// For the plugin's author.
pub const POLLUX_LOG_DEBUG: u32 = 4;
/// For the plugin's author, in bulk.
pub const POLLUX_LOG_TRACE: u32 = 5;

/// The host's services, as a table of functions. It stays valid until the process ends.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct HostV1 {
    /// Size of this structure in bytes.
    pub struct_size: u32,
    /// Lines above this level need not be passed to `log`: the host would drop them.
    pub log_level: u32,
    /// The first argument of each function.
    pub context: *mut c_void,
    /// Passes one log line. `target` names its origin inside the plugin. `[any thread]`, never in `submit` or `poll`
    /// of a healthy request: it may block.
    pub log: unsafe extern "C" fn(context: *mut c_void, level: u32, target: Text, message: Text),
    /// Says that what `describe` answers has changed, such as the capacity. `[any thread]`. A host that can change a
    /// running device asks again, on its control thread; any other does so when the medium is next opened.
    pub changed: unsafe extern "C" fn(context: *mut c_void),
    /// Zero.
    pub reserved: [usize; 4],
}
