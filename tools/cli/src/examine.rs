//! What every command does first: a file becomes a configuration without mistakes, its plugins loaded and its media
//! looked at. Nothing is started and nothing is locked.
use crate::{
    Shared, descriptors,
    report::{self, Source},
};
use pollux_core::{
    config::{self, Block, Config, Context, Device, Diagnostic, Host, Purpose, Span, Transport, Vm, suggest},
    plugin::{BackendError, Plugin, PluginPath},
};
use pollux_host::{Backend, Plugins, configuration::Backends, machine, plugin::PluginError};
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
    /// The plugins that are loaded.
    pub(crate) plugins: Plugins,
    /// The medium of each block.
    pub(crate) backends: Backends,
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
        let plugins = Plugins::new(plugin_path, &folder);
        let mut probe = Probe { plugins: &plugins, found };
        if let Some(vm) = &config.vm {
            probe.kernel(vm);
        }
        let used = probe.plugins(&config.blocks);
        let backends = probe.media(&config.blocks, &used);
        probe.devices(&config, &backends);
        probe.found.extend(descriptors::examine(&config));
        if purpose == Purpose::Any {
            probe.sockets(&config);
        }
        let mut found = probe.found;
        found.sort_by_key(|diagnostic| diagnostic.labels.first().map(|label| label.span.start));
        if found.iter().any(Diagnostic::is_error) {
            return Err(found);
        }
        Ok(Examined { config, plugins, backends, warnings: found })
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
    plugins: &'p Plugins,
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

    fn plugin(&self, name: &str) -> Result<Plugin, Diagnostic> {
        self.plugins.load(name).map_err(|error| {
            let diagnostic = Diagnostic::error(error.to_string());
            match error {
                PluginError::NotFound { help, .. } => diagnostic.help(help),
                PluginError::Load(_) => diagnostic,
            }
        })
    }

    /// Looks at the medium of each block.
    fn media(&mut self, blocks: &[Block], plugins: &HashMap<String, Plugin>) -> Backends {
        let mut backends = Backends::new();
        for block in blocks {
            let name = &block.name.value;
            let Some(plugin) = plugins.get(name) else { continue };
            match Backend::probe(block.into(), plugin.clone()) {
                Ok(backend) => drop(backends.insert(name.clone(), backend)),
                Err(error) => self.found.push(complaint(block, &error)),
            }
        }
        backends
    }

    /// What devices want of their media.
    fn devices(&mut self, config: &Config, backends: &Backends) {
        let mut seen: Vec<(&Device, &Block, &Backend)> = Vec::new();
        for device in &config.devices {
            let Some(name) = device.block() else { continue };
            let (Some(block), Some(backend)) = (config.block(&name.value), backends.get(&name.value)) else {
                continue;
            };
            let queues = device.queues.value.count;
            let most = backend.info().maximum_queues as usize;
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
            let clash = seen.iter().find(|(_, other, their_backend)| {
                other.name.value != block.name.value && backend.is_in_the_way_of(their_backend)
            });
            if let Some((other_device, other, _)) = clash {
                self.found.push(same_medium(device, block, other_device, other));
            }
            seen.push((device, block, backend));
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
