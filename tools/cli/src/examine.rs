//! What every command does first: a file becomes a configuration without mistakes, its plugins loaded and its media
//! looked at. Nothing is started and nothing is locked.
use crate::{
    Shared,
    assemble::machine,
    descriptors,
    report::{self, Source},
};
use pollux_abi::block_v1::BlockInfo;
use pollux_core::{
    config::{self, Block, Config, Context, Device, Diagnostic, Host, Purpose, Span, Spanned, Transport, Vm, suggest},
    plugin::{BackendError, BlockBackend, OpenOptions, Plugin, PluginPath, Registry},
};
use pollux_vmm::boot;
use std::{
    collections::{BTreeMap, HashMap},
    env,
    path::{Path, PathBuf, absolute},
};

/// A configuration without mistakes.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) config: Config,
    /// The plugin of each block, by the block's name.
    pub(crate) plugins: HashMap<String, Plugin>,
    /// What is hardly as it is meant.
    pub(crate) warnings: Vec<Diagnostic>,
}

/// Examines `file` for a command that starts it, and shows what is found. None: nothing can be started.
pub(crate) fn examine_and_show(file: &Path, purpose: Purpose, shared: &Shared) -> Option<Examined> {
    let (source, result) = examine(file, purpose, &shared.plugin_path());
    let found = match &result {
        Ok(examined) => &examined.warnings,
        Err(found) => found,
    };
    report::show(&source, found, shared.warns());
    result.ok()
}

/// Examines `file`. The error is all that is wrong with it, warnings among it.
///
/// From here on the process works in the file's folder: so a relative path in a plugin's options, which only the plugin
/// knows to be one, starts there as every other in the file does.
pub(crate) fn examine(
    file: &Path,
    purpose: Purpose,
    plugin_path: &PluginPath,
) -> (Source, Result<Examined, Vec<Diagnostic>>) {
    // Each medium takes some, if only to be looked at.
    descriptors::raise_limit();
    let mut source = Source { name: file.display().to_string(), text: String::new() };
    let result = config::read_file(file).map_err(|diagnostic| vec![diagnostic]).and_then(|text| {
        source.text = text;
        let folder = enter_folder(file).map_err(|diagnostic| vec![diagnostic])?;
        let (host, limits) = (Host::probe(), machine::limits());
        let context = Context { purpose, folder: &folder, host: &host, limits: &limits };
        let (config, found) = config::parse(&source.text, &context);
        let Some(config) = config else { return Err(found) };
        let mut probe = Probe { plugin_path, folder: &folder, registry: Registry::default(), found };
        if let Some(vm) = &config.vm {
            probe.kernel(vm);
        }
        let plugins = probe.plugins(&config.blocks);
        let infos = probe.media(&config.blocks, &plugins);
        probe.devices(&config, &infos);
        probe.found.extend(descriptors::examine(&config));
        if purpose == Purpose::Any {
            probe.sockets(&config);
        }
        probe.found.sort_by_key(|diagnostic| diagnostic.labels.first().map(|label| label.span.start));
        if probe.found.iter().any(Diagnostic::is_error) {
            return Err(probe.found);
        }
        Ok(Examined { config, plugins, warnings: probe.found })
    });
    (source, result)
}

fn enter_folder(file: &Path) -> Result<PathBuf, Diagnostic> {
    let enter = || {
        let file = absolute(file)?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        env::set_current_dir(&folder)?;
        Ok(folder)
    };
    enter().map_err(|error: std::io::Error| {
        Diagnostic::error(format!("cannot work in the configuration's folder: {error}"))
            .help("relative paths start there: make it accessible for this user")
    })
}

struct Probe<'p> {
    plugin_path: &'p PluginPath,
    folder: &'p Path,
    registry: Registry,
    found: Vec<Diagnostic>,
}

impl Probe<'_> {
    /// Whether the machine can start the kernel.
    fn kernel(&mut self, vm: &Vm) {
        if let Err(error) = boot::check(&machine::kernel_spec(vm), vm.memory_bytes) {
            let about_initrd = matches!(&error, boot::Error::TooLittleMemory { what: "initrd", .. });
            let span = vm.initrd.as_ref().filter(|_| about_initrd).map_or(&vm.kernel.span, |initrd| &initrd.span);
            self.found.push(Diagnostic::error(error.to_string()).at(span, ""));
        }
    }

    /// The plugin of each block. One that cannot be used is reported once, however many blocks want it.
    fn plugins(&mut self, blocks: &[Block]) -> HashMap<String, Plugin> {
        let mut wanted: BTreeMap<&str, Vec<&Block>> = BTreeMap::new();
        for block in blocks {
            wanted.entry(&block.plugin.value).or_default().push(block);
        }
        let mut plugins = HashMap::new();
        for (name, blocks) in wanted {
            match self.plugin(name) {
                Ok(plugin) => {
                    plugins.extend(blocks.iter().map(|block| (block.name.value.clone(), plugin.clone())));
                }
                Err(mut diagnostic) => {
                    for (index, block) in blocks.iter().enumerate() {
                        diagnostic = diagnostic.at(&block.plugin.span, if index == 0 { "" } else { "here too" });
                    }
                    self.found.push(diagnostic);
                }
            }
        }
        plugins
    }

    fn plugin(&mut self, name: &str) -> Result<Plugin, Diagnostic> {
        let path = self
            .plugin_path
            .find(name, self.folder)
            .map_err(|places| Diagnostic::error(format!("plugin \"{name}\": {places}")).help(self.where_else(name)))?;
        self.registry.load(&path).map_err(|error| Diagnostic::error(error.to_string()))
    }

    /// What to write instead of a plugin's name that leads nowhere.
    fn where_else(&self, name: &str) -> String {
        if name.contains('/') {
            return "name an existing file, or a plugin on the plugin path such as \"uring\"".into();
        }
        if name.contains(".so") {
            return format!("for a file, write its path with a slash: \"./{name}\"");
        }
        let there = self.plugin_path.names();
        if let Some(near) = suggest::nearest(name, there.iter().map(String::as_str)) {
            return format!("did you mean \"{near}\"?");
        }
        let more = "add a folder with --plugin-path DIR or POLLUX_PLUGIN_PATH";
        if there.is_empty() { more.into() } else { format!("there are {}; or {more}", there.join(", ")) }
    }

    /// What each medium is like, by the block's name.
    fn media(&mut self, blocks: &[Block], plugins: &HashMap<String, Plugin>) -> HashMap<String, BlockInfo> {
        let mut infos = HashMap::new();
        for block in blocks {
            let name = &block.name.value;
            let Some(plugin) = plugins.get(name) else { continue };
            let options = OpenOptions { probe: true, ..open_options(block) };
            match BlockBackend::open(plugin, name, &options) {
                Ok(backend) => drop(infos.insert(name.clone(), *backend.info())),
                Err(error) => self.found.push(complaint(block, &error)),
            }
        }
        infos
    }

    /// What devices want of their media.
    fn devices(&mut self, config: &Config, infos: &HashMap<String, BlockInfo>) {
        let mut seen: Vec<(&Device, &Spanned<String>, &Block, &BlockInfo)> = Vec::new();
        for device in &config.devices {
            let Some(name) = device.block() else { continue };
            let (Some(block), Some(info)) = (config.block(&name.value), infos.get(&name.value)) else {
                continue;
            };
            let queues = device.queues.value.count;
            let most = info.maximum_queues as usize;
            if most != 0 && queues > most {
                let message = format!("{} has {queues} queues, but its backend serves {most}", device.name.value);
                self.found.push(
                    Diagnostic::error(message)
                        .at(&device.queues.span, "")
                        .at(&block.plugin.span, "the backend")
                        .help(format!("write queues = {most} or less")),
                );
            }
            // Two devices of one block were looked at when the file was read.
            let clash = seen.iter().find(|(_, _, other, their_info)| {
                other.name.value != block.name.value
                    && is_same_medium(info, their_info)
                    && (writes(block, info) || writes(other, their_info))
            });
            if let Some((other_device, _, other, _)) = clash {
                self.found.push(same_medium(device, block, other_device, other));
            }
            seen.push((device, name, block, info));
        }
    }
}

impl Probe<'_> {
    /// Whether this user may give the sockets away as the file says. A service manager may make them instead, so this
    /// is for whoever asks: a start finds out by itself.
    fn sockets(&mut self, config: &Config) {
        for device in &config.devices {
            let Transport::VhostUser(socket) = &device.transport else { continue };
            if let Err(error) = socket.value.check_access() {
                let message = format!("{}: {error}", device.name.value);
                let help = "only root may give files to other users, or to groups that the user is not in: serve as \
                            root, add the user to the group, or leave `owner` and `group` out and give the socket's \
                            folder to the group";
                self.found.push(Diagnostic::error(message).at(&socket.span, "").help(help));
            }
        }
    }
}

/// How to open the medium of `block`.
pub(crate) fn open_options(block: &Block) -> OpenOptions {
    OpenOptions { json: block.options.json.clone(), read_only: block.read_only, probe: false }
}

fn is_same_medium(one: &BlockInfo, other: &BlockInfo) -> bool {
    let identity = |info: &BlockInfo| (info.identity_device, info.identity_object);
    identity(one) != (0, 0) && identity(one) == identity(other)
}

fn writes(block: &Block, info: &BlockInfo) -> bool {
    !block.read_only && !info.is_read_only()
}

/// Where a block names its medium.
fn medium_span(block: &Block) -> &Span {
    block.options.span.as_ref().unwrap_or(&block.plugin.span)
}

fn same_medium(device: &Device, block: &Block, other_device: &Device, other: &Block) -> Diagnostic {
    let message = format!(
        "blocks {} and {} are the same medium, and devices {} and {} would not only read it",
        other.name.value, block.name.value, other_device.name.value, device.name.value
    );
    Diagnostic::error(message)
        .at(medium_span(block), "")
        .at(medium_span(other), format!("block {}", other.name.value))
        .help("give each device a medium of its own, or write read_only = true in both blocks")
}

/// A plugin's complaint at the place that it is about.
fn complaint(block: &Block, error: &BackendError) -> Diagnostic {
    let message = error.to_string();
    let BackendError::Refused { reason, .. } = error else {
        return Diagnostic::error(message).at(&block.plugin.span, "");
    };
    let options = &block.options;
    // A plugin that names an option in its complaint most likely means it; plugins in Rust say `options.NAME: …`.
    let path = reason.strip_prefix("options.").and_then(|rest| rest.split([':', '.', '[']).next());
    let named = options.keys.iter().find(|key| path == Some(&key.value)).or_else(|| {
        options.keys.iter().find(|key| {
            let name = &key.value;
            reason.contains(&format!("`{name}`")) || reason.starts_with(&format!("{name} = "))
        })
    });
    match (named, &options.span) {
        (Some(key), _) => match wanted_option(reason, &key.value) {
            Some(near) => Diagnostic::error(message).at(&key.span, "").help(format!("did you mean `{near}`?")),
            None => Diagnostic::error(message).at(&key.span, ""),
        },
        (None, Some(span)) => Diagnostic::error(message).at(span, ""),
        (None, None) => Diagnostic::error(message)
            .at(&block.plugin.span, "")
            .help("this block has no `options`; write options = { … } with what the plugin takes"),
    }
}

/// The option that `key` is a slip of, if the plugin lists what it knows as serde does: "unknown field `pth`, expected
/// one of `path`, `direct`".
fn wanted_option<'r>(reason: &'r str, key: &str) -> Option<&'r str> {
    let (_, list) = reason.split_once("unknown field `")?.1.split_once("expected")?;
    suggest::nearest(key, list.split('`').skip(1).step_by(2))
}
