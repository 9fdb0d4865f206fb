//! The descriptor that every plugin exports, and the two doors to it.
//!
//! * A plugin in any language exports the C function [`POLLUX_PLUGIN_SYMBOL`], which returns its [`PluginDescriptor`].
//! * A plugin in Rust exports an `abi_stable` root module, [`PluginModule`], with the same descriptor and, for each
//!   interface, the layout its tables were compiled with. The host compares it field by field before it calls anything.
//!
//! [`export_plugin!`](crate::export_plugin) writes both.
use crate::{host_v1::HostV1, text::Text};
use abi_stable::{
    StableAbi,
    library::RootModule,
    package_version_strings,
    sabi_types::VersionStrings,
    std_types::{RSlice, RStr},
    type_layout::TypeLayout,
};
use std::ffi::c_void;

/// Version of [`PluginDescriptor`] itself. It grows only if the descriptor ever has to change.
pub const POLLUX_PLUGIN_VERSION: u32 = 1;

/// Name of the C function that returns the descriptor: `const PolluxPluginDescriptor *pollux_plugin(void)`.
pub const POLLUX_PLUGIN_SYMBOL: &str = "pollux_plugin";

/// One interface of a plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Interface {
    /// Its name and number, such as `block/1`. Static.
    pub name: Text,
    /// Its table of functions, such as `BlockV1`. Static.
    pub table: *const c_void,
}

// SAFETY: both pointers lead to immutable statics.
unsafe impl Send for Interface {}
// SAFETY: as above.
unsafe impl Sync for Interface {}

/// A table of functions that the host finds by its name.
///
/// It is `repr(C)` and begins with its size, as a `u32`, and 32 bits that are zero. Functions alone follow, none of
/// which may be null.
pub trait InterfaceTable: StableAbi + 'static {
    /// The interface's name and number.
    const NAME: &'static str;
}

/// A type whose table of the interface `T` can be exported. Every [`Block`](crate::block::Block) provides that of
/// `block/1`.
pub trait Provides<T: InterfaceTable> {
    /// The table.
    const TABLE: T;
}

/// What a plugin is: its name, its version and its interfaces. A static of the plugin's.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct PluginDescriptor {
    /// Size of this structure in bytes.
    pub struct_size: u32,
    /// [`POLLUX_PLUGIN_VERSION`].
    pub descriptor_version: u32,
    /// Short name, such as `uring`. Log lines carry it. Static.
    pub name: Text,
    /// The plugin's own version, such as `0.1.0`. Static.
    pub version: Text,
    /// The first of the interfaces. Static.
    pub interfaces: *const Interface,
    /// Number of interfaces.
    pub interface_count: usize,
    /// Called once, before everything else, with services that stay valid for ever. Returns 0, or a negative errno.
    /// `[control]`
    pub initialize: unsafe extern "C" fn(host: *const HostV1) -> i32,
    /// Zero.
    pub reserved: [usize; 4],
}

// SAFETY: all pointers lead to immutable statics.
unsafe impl Send for PluginDescriptor {}
// SAFETY: as above.
unsafe impl Sync for PluginDescriptor {}

/// With which layout a Rust plugin compiled the table of one of its interfaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct InterfaceLayout {
    /// The interface's name, as in the descriptor.
    pub name: RStr<'static>,
    /// The layout of its table, with that of every type it names.
    pub layout: &'static TypeLayout,
}

/// The `abi_stable` root module of a Rust plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
#[sabi(missing_field(panic))]
pub struct PluginModule {
    /// The descriptor, the same as the C door's.
    pub descriptor: &'static PluginDescriptor,
    /// One entry for each interface.
    #[sabi(last_prefix_field)]
    pub layouts: RSlice<'static, InterfaceLayout>,
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}
    const BASE_NAME: &'static str = "pollux_plugin";
    const NAME: &'static str = "pollux_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
