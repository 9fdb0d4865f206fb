//! The macro that turns a type into a plugin.
use crate::{host_v1::HostV1, plugin::PluginModule};
use abi_stable::prefix_type::PrefixTypeTrait;

/// Exports a plugin through both doors: the C function `pollux_plugin` and the `abi_stable` root module.
///
/// ```text
/// pollux_abi::export_plugin! { name: "null", block: Null }
/// ```
#[macro_export]
macro_rules! export_plugin {
    (name: $name:literal, block: $block:ty $(,)?) => {
        #[doc(hidden)]
        #[allow(unsafe_code, missing_docs, unreachable_pub)]
        mod __pollux_plugin {
            use super::*;
            use $crate::__private::abi_stable;
            use $crate::plugin::{Interface, InterfaceLayout, PluginDescriptor};

            static BLOCK: $crate::block_v1::BlockV1 = $crate::block::table::<$block>();

            static INTERFACES: [Interface; 1] = [Interface {
                name: $crate::text::Text::new($crate::block_v1::BlockV1::NAME),
                table: &raw const BLOCK as *const ::core::ffi::c_void,
            }];

            static LAYOUTS: [InterfaceLayout; 1] = [InterfaceLayout {
                name: abi_stable::std_types::RStr::from_str($crate::block_v1::BlockV1::NAME),
                layout: <$crate::block_v1::BlockV1 as $crate::__private::StableAbi>::LAYOUT,
            }];

            static DESCRIPTOR: PluginDescriptor = PluginDescriptor {
                struct_size: ::core::mem::size_of::<PluginDescriptor>() as u32,
                descriptor_version: $crate::plugin::POLLUX_PLUGIN_VERSION,
                name: $crate::text::Text::new($name),
                version: $crate::text::Text::new(env!("CARGO_PKG_VERSION")),
                interfaces: &raw const INTERFACES as *const Interface,
                interface_count: INTERFACES.len(),
                initialize: $crate::export::initialize,
                reserved: [0; 4],
            };

            #[unsafe(no_mangle)]
            pub extern "C" fn pollux_plugin() -> *const PluginDescriptor {
                &raw const DESCRIPTOR
            }

            extern "C" fn module() -> abi_stable::library::RootModuleResult {
                abi_stable::library::__call_root_module_loader(|| $crate::export::module(&DESCRIPTOR, &LAYOUTS))
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
pub fn module(
    descriptor: &'static crate::plugin::PluginDescriptor,
    layouts: &'static [crate::plugin::InterfaceLayout],
) -> crate::plugin::PluginModuleRef {
    PluginModule { descriptor, layouts: layouts.into() }.leak_into_prefix()
}
