//! The macro that turns types into a plugin.
use crate::{
    host_v1::HostV1,
    plugin::{Interface, InterfaceLayout, InterfaceTable, PluginDescriptor, PluginModule, PluginModuleRef},
    text::Text,
};
use abi_stable::{prefix_type::PrefixTypeTrait, std_types::RStr};

/// Exports a plugin through both doors: the C function `pollux_plugin` and the `abi_stable` root module.
///
/// ```text
/// pollux_abi::export_plugin! { name: "null", block: Null }
/// ```
///
/// After the name comes an entry for each interface that the plugin offers, one at least: its kind and the type behind
/// it. The kinds:
///
/// | kind | interface | the type implements |
/// |---|---|---|
/// | `block` | `block/1` | [`Block`](crate::block::Block) |
///
/// For an interface that is not one of Pollux's, the kind is the name of its
/// [`InterfaceTable`](crate::plugin::InterfaceTable) in scope, and the type implements
/// [`Provides`](crate::plugin::Provides) of it.
#[macro_export]
macro_rules! export_plugin {
    (name: $name:literal $(, $kind:ident: $backend:ty)+ $(,)?) => {
        #[doc(hidden)]
        #[allow(unsafe_code, missing_docs, unreachable_pub)]
        mod __pollux_plugin {
            use super::*;
            use $crate::__private::abi_stable;
            use $crate::plugin::{Interface, InterfaceLayout, PluginDescriptor, Provides};

            static INTERFACES: &[Interface] = &[
                $($crate::export::interface(
                    const { &<$backend as Provides<$crate::__interface_table!($kind)>>::TABLE },
                )),+
            ];

            static LAYOUTS: &[InterfaceLayout] =
                &[$($crate::export::layout::<$crate::__interface_table!($kind)>()),+];

            const _: () = $crate::export::assert_distinct(
                &[$(<$crate::__interface_table!($kind) as $crate::plugin::InterfaceTable>::NAME),+],
            );

            static DESCRIPTOR: PluginDescriptor = PluginDescriptor {
                struct_size: ::core::mem::size_of::<PluginDescriptor>() as u32,
                descriptor_version: $crate::plugin::POLLUX_PLUGIN_VERSION,
                name: $crate::text::Text::new($name),
                version: $crate::text::Text::new(env!("CARGO_PKG_VERSION")),
                interfaces: INTERFACES.as_ptr(),
                interface_count: INTERFACES.len(),
                initialize: $crate::export::initialize,
                reserved: [0; 4],
            };

            #[unsafe(no_mangle)]
            pub extern "C" fn pollux_plugin() -> *const PluginDescriptor {
                &raw const DESCRIPTOR
            }

            extern "C" fn module() -> abi_stable::library::RootModuleResult {
                abi_stable::library::__call_root_module_loader(|| $crate::export::module(&DESCRIPTOR, LAYOUTS))
            }

            // What abi_stable's `export_root_module` writes, which needs a crate of that name in the plugin's own
            // dependencies.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static ROOT_MODULE: abi_stable::library::LibHeader =
                // SAFETY: `module` returns a `PluginModuleRef`.
                unsafe {
                    abi_stable::library::LibHeader::from_constructor::<$crate::plugin::PluginModuleRef>(
                        module,
                        abi_stable::library::CheckTypeLayout::Yes,
                    )
                };
        }
    };
}

/// The table of each kind that [`export_plugin!`](crate::export_plugin) knows: one line for an interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __interface_table {
    (block) => {
        $crate::block_v1::BlockV1
    };
    ($table:ident) => {
        $table
    };
}

/// A plugin's entry for one of its interfaces.
#[doc(hidden)]
pub const fn interface<T: InterfaceTable>(table: &'static T) -> Interface {
    Interface { name: Text::new(T::NAME), table: std::ptr::from_ref(table).cast() }
}

/// The layout with which the plugin compiles an interface.
#[doc(hidden)]
pub const fn layout<T: InterfaceTable>() -> InterfaceLayout {
    InterfaceLayout { name: RStr::from_str(T::NAME), layout: T::LAYOUT }
}

/// Refuses to compile a plugin that offers the same interface twice: the host would see the first one alone.
#[doc(hidden)]
pub const fn assert_distinct(names: &[&str]) {
    let mut index = 0;
    while index < names.len() {
        let mut other = index + 1;
        while other < names.len() {
            let is_same = is_equal(names[index].as_bytes(), names[other].as_bytes());
            assert!(!is_same, "export_plugin! names one interface twice");
            other += 1;
        }
        index += 1;
    }
}

const fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// The `initialize` of every Rust plugin.
///
/// # Safety
/// `host` must stay valid for ever.
#[doc(hidden)]
pub unsafe extern "C" fn initialize(host: *const HostV1) -> i32 {
    // SAFETY: the caller vouches for the table.
    unsafe { crate::host::install(host) };
    0
}

/// The root module of a Rust plugin.
#[doc(hidden)]
pub fn module(descriptor: &'static PluginDescriptor, layouts: &'static [InterfaceLayout]) -> PluginModuleRef {
    PluginModule { descriptor, layouts: layouts.into() }.leak_into_prefix()
}
