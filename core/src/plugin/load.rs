//! Opens one plugin file and checks it before any of its functions is called.
use super::{host::HostServices, layout};
use abi_stable::{
    StableAbi,
    library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL},
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nix::unistd::{Group, User};
use pollux_abi::plugin::{
    InterfaceLayout, POLLUX_PLUGIN_SYMBOL, POLLUX_PLUGIN_VERSION, PluginDescriptor, PluginModuleRef,
};
use std::{
    fs, io,
    mem::ManuallyDrop,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};
use tracing::{debug, info};

/// Most interfaces that one plugin may list. More are taken for garbage.
const MAX_INTERFACES: usize = 64;

/// Why a plugin file was refused. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("plugin {path}: {cause}", path = .0.display(), cause = .1)]
    File(PathBuf, #[source] io::Error),
    /// Not a regular file.
    #[error("plugin {path} is not a file but a {kind}", path = .0.display(), kind = .1)]
    NoFile(PathBuf, &'static str),
    /// Anyone could change the code that we are about to run.
    #[error(
        "plugin {path} may be written by its group or by everyone (mode {mode:o}), who could then run code as this \
         user: chmod go-w {path}", path = .0.display(), mode = .1
    )]
    Writable(PathBuf, u32),
    /// The dynamic linker refuses it.
    #[error("{path} is not a plugin, or lacks a library that it needs: {cause}", path = .0.display(), cause = .1)]
    Open(PathBuf, String),
    /// A library without the symbols of a plugin.
    #[error(
        "{path} is a shared library, but not a plugin: it has neither the symbol `pollux_plugin` nor an abi_stable \
         root module (a plugin in Rust ends with `pollux_abi::export_plugin!`)", path = .0.display()
    )]
    Symbol(PathBuf),
    /// The descriptor is not usable.
    #[error("plugin {path}: its descriptor is unusable: {reason}", path = .0.display(), reason = .1)]
    Descriptor(PathBuf, String),
    /// The interface that is asked for is missing, or there in another number.
    #[error("plugin {path} offers {offered}, but this Pollux speaks {wanted}: {hint}", path = .path.display())]
    Interface {
        /// The file.
        path: PathBuf,
        /// What it offers.
        offered: String,
        /// What was wanted.
        wanted: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The interface was compiled with another layout.
    #[error(
        "plugin {path} was built against another {interface}: {difference}; rebuild it with this release's pollux-abi",
        path = .path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// The interface.
        interface: &'static str,
        /// The field that differs.
        difference: String,
    },
    /// The plugin's own start failed.
    #[error("plugin {path} refused to start: {cause}", path = .0.display(), cause = .1)]
    Initialize(PathBuf, io::Error),
}

/// A loaded plugin. Its library is never unloaded.
#[derive(Clone, Debug)]
pub struct Plugin {
    path: PathBuf,
    name: String,
    descriptor: &'static PluginDescriptor,
    /// What abi_stable knows about its interfaces; empty for a plugin loaded through the C door.
    layouts: &'static [InterfaceLayout],
}

impl Plugin {
    /// Opens and checks the file.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        check_file(path)?;
        // SAFETY: opening a library runs its constructors: naming a plugin in the configuration means trusting it as
        // code of this process, and the check above made sure that only its owner can change it.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE) }
            .map_err(|error| LoadError::Open(path.into(), dlopen_reason(path, &error)))?;
        let library = ManuallyDrop::new(library);
        let (descriptor, layouts) = match rust_door(path, &library)? {
            Some(found) => found,
            None => (c_door(path, &library)?, &[][..]),
        };
        let plugin = Self::checked(path, descriptor, layouts)?;
        plugin.initialize()?;
        Ok(plugin)
    }

    /// A plugin that is linked into this process, for tests and benchmarks.
    ///
    /// # Errors
    /// As [`load`](Self::load), for an unusable descriptor.
    pub fn linked(descriptor: &'static PluginDescriptor) -> Result<Self, LoadError> {
        Self::checked(Path::new("(linked)"), descriptor, &[])
    }

    fn checked(
        path: &Path,
        descriptor: &'static PluginDescriptor,
        layouts: &'static [InterfaceLayout],
    ) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Descriptor(path.into(), reason);
        let (size, version) = (descriptor.struct_size as usize, descriptor.descriptor_version);
        if version != POLLUX_PLUGIN_VERSION {
            return Err(refuse(format!("it has version {version}, this Pollux reads version {POLLUX_PLUGIN_VERSION}")));
        }
        if size < size_of::<PluginDescriptor>() {
            let wanted = size_of::<PluginDescriptor>();
            return Err(refuse(format!("its size is {size} bytes, at least {wanted} are expected")));
        }
        if descriptor.interface_count > MAX_INTERFACES || descriptor.interfaces.is_null() {
            return Err(refuse(format!("it lists {} interfaces", descriptor.interface_count)));
        }
        // SAFETY: the function's bits are only compared; a C plugin may have left it out.
        if unsafe { (&raw const descriptor.initialize).cast::<usize>().read() } == 0 {
            return Err(refuse("its function `initialize` is NULL".into()));
        }
        // SAFETY: the name is a static text of the plugin.
        let name = unsafe { descriptor.name.as_str() }.to_owned();
        if name.is_empty() {
            return Err(refuse("it has no name".into()));
        }
        Ok(Plugin { path: path.into(), name, descriptor, layouts })
    }

    fn initialize(&self) -> Result<(), LoadError> {
        // They belong to the plugin for as long as it is loaded, which is for ever.
        let services = HostServices::new(&self.name, "", false)
            .map_err(|error| LoadError::Initialize(self.path.clone(), error))?;
        let services: &'static HostServices = Box::leak(Box::new(services));
        // SAFETY: `checked` made sure that there is a function, and the contract says how it may be called: once,
        // first.
        let result = unsafe { (self.descriptor.initialize)(services.table()) };
        if result < 0 {
            return Err(LoadError::Initialize(
                self.path.clone(),
                io::Error::from_raw_os_error(result.saturating_neg()),
            ));
        }
        let door = if self.layouts.is_empty() { "C" } else { "abi_stable" };
        info!("plugin {} {} loaded from {} ({door} door)", self.name, self.version(), self.path.display());
        Ok(())
    }

    /// The plugin's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's own version.
    pub fn version(&self) -> &'static str {
        // SAFETY: the version is a static text of the plugin.
        unsafe { self.descriptor.version.as_str() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table of an interface such as `block/1`, checked to be a `T` with no function missing.
    ///
    /// # Errors
    /// The plugin does not offer it, or was compiled with another layout of it.
    pub(super) fn interface<T: StableAbi>(&self, name: &'static str) -> Result<&'static T, LoadError> {
        // SAFETY: `checked` bounded the list, which is a static of the plugin.
        let list = unsafe { std::slice::from_raw_parts(self.descriptor.interfaces, self.descriptor.interface_count) };
        // SAFETY: names are static texts of the plugin.
        let offered: Vec<&str> = list.iter().map(|interface| unsafe { interface.name.as_str() }).collect();
        let Some(index) = offered.iter().position(|&offer| offer == name) else {
            return Err(self.missing(name, &offered));
        };
        if let Some(theirs) = self.layouts.iter().find(|layout| layout.name.as_str() == name) {
            layout::check(T::LAYOUT, theirs.layout).map_err(|difference| LoadError::Layout {
                path: self.path.clone(),
                interface: name,
                difference,
            })?;
        }
        self.checked_table(name, list[index].table.cast())
    }

    fn missing(&self, wanted: &'static str, offered: &[&str]) -> LoadError {
        let kind = wanted.split('/').next().unwrap_or(wanted);
        let number = |name: &str| name.split('/').nth(1).and_then(|number| number.parse::<u32>().ok());
        let same_kind = offered.iter().find(|offer| offer.split('/').next() == Some(kind));
        let hint = match same_kind {
            Some(offer) if number(offer) > number(wanted) => "it is newer than this Pollux: install a newer Pollux",
            Some(_) => "it is older than this Pollux: rebuild it with this release's pollux-abi",
            None => "it is a plugin for something else",
        };
        let offered = if offered.is_empty() { "no interface".into() } else { offered.join(", ") };
        LoadError::Interface { path: self.path.clone(), offered, wanted, hint }
    }

    /// Checks the size that a table claims, and that none of its functions is null.
    fn checked_table<T>(&self, name: &str, table: *const T) -> Result<&'static T, LoadError> {
        let refuse = |reason: String| LoadError::Descriptor(self.path.clone(), reason);
        if table.is_null() {
            return Err(refuse(format!("its table of {name} is NULL")));
        }
        // SAFETY: every interface table begins with its size, as a 32-bit number.
        let size = unsafe { table.cast::<u32>().read() } as usize;
        if size < size_of::<T>() {
            return Err(refuse(format!("its table of {name} has {size} bytes, {} are expected", size_of::<T>())));
        }
        // After the size and a reserved word come functions only.
        for index in 1..size_of::<T>() / size_of::<usize>() {
            // SAFETY: the table is at least as large as `T`, and functions are as large as `usize`.
            if unsafe { table.cast::<usize>().add(index).read() } == 0 {
                return Err(refuse(format!("function {index} of its table of {name} is NULL")));
            }
        }
        // SAFETY: the table is a static of the plugin, of sufficient size, and each of its fields has a valid value.
        Ok(unsafe { &*table })
    }
}

/// Refuses files that cannot be plugins, or that others may change.
fn check_file(path: &Path) -> Result<(), LoadError> {
    let metadata = fs::metadata(path).map_err(|error| LoadError::File(path.into(), error))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let name = if kind.is_dir() {
            "folder"
        } else if kind.is_block_device() || kind.is_char_device() {
            "device"
        } else {
            "special file"
        };
        return Err(LoadError::NoFile(path.into(), name));
    }
    let mode = metadata.mode();
    let is_groups = mode & 0o020 != 0 && !is_private_group(metadata.gid(), metadata.uid());
    if mode & 0o002 != 0 || is_groups {
        return Err(LoadError::Writable(path.into(), mode & 0o7777));
    }
    Ok(())
}

/// Whether the owner is the only member of a group. Where each user has such a group, the usual umask lets it write.
fn is_private_group(group: u32, owner: u32) -> bool {
    let (Ok(Some(user)), Ok(Some(group))) = (User::from_uid(owner.into()), Group::from_gid(group.into())) else {
        return false;
    };
    // Name, password, user's number, group's number (passwd(5)).
    let is_others = |line: &str| {
        let mut numbers = line.split(':').skip(2).map(|field| field.parse::<u32>().ok());
        matches!((numbers.next(), numbers.next()), (Some(user), Some(Some(primary)))
            if user != Some(owner) && primary == group.gid.as_raw())
    };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    user.gid == group.gid
        && user.name == group.name
        && group.mem.iter().all(|member| *member == user.name)
        && !users.lines().any(is_others)
}

/// The linker's reason without the file name, which our message already contains.
fn dlopen_reason(path: &Path, error: &libloading::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    text.trim_start_matches(&*path.to_string_lossy()).trim_start_matches(": ").to_owned()
}

type Door = (&'static PluginDescriptor, &'static [InterfaceLayout]);

/// The abi_stable door: proves the root module's layout before it is called. `None`: there is no such door.
fn rust_door(path: &Path, library: &Library) -> Result<Option<Door>, LoadError> {
    // SAFETY: the symbol is abi_stable's own, a static of this type.
    let Ok(header) = (unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }) else {
        return Ok(None);
    };
    let refuse = |reason: String| LoadError::Descriptor(path.into(), reason);
    let first_line = |error: &dyn std::fmt::Display| error.to_string().trim().lines().next().unwrap_or("").to_owned();
    let header = (*header).upgrade().map_err(|error| refuse(first_line(&error)))?;
    let theirs = header.layout().ok_or_else(|| refuse("it was built without its layout".into()))?;
    layout::check(PluginModuleRef::LAYOUT, theirs).map_err(|difference| LoadError::Layout {
        path: path.into(),
        interface: "root module",
        difference,
    })?;
    // SAFETY: the layout has just been checked.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() }
        .map_err(|error| refuse(first_line(&error)))?;
    debug!("{}: abi_stable root module found", path.display());
    Ok(Some((module.descriptor(), module.layouts().as_slice())))
}

/// The C door: one function that returns the descriptor.
fn c_door(path: &Path, library: &Library) -> Result<&'static PluginDescriptor, LoadError> {
    type Entry = unsafe extern "C" fn() -> *const PluginDescriptor;
    // SAFETY: exporting a symbol of this name promises this type (abi/include/pollux.h).
    let entry = unsafe { library.get::<Entry>(POLLUX_PLUGIN_SYMBOL) }.map_err(|_| LoadError::Symbol(path.into()))?;
    // SAFETY: as above.
    let descriptor = unsafe { entry() };
    // SAFETY: a descriptor is a static of the plugin.
    unsafe { descriptor.as_ref() }
        .ok_or_else(|| LoadError::Descriptor(path.into(), "`pollux_plugin` returned NULL".into()))
}
