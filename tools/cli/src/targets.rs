//! What `pollux bench` measures: sockets of other processes, and devices of configurations that it starts itself.
use crate::{
    Shared,
    examine::{self, Examined},
};
use pollux_core::{
    config::{Config, Device, Purpose, Transport},
    stats::StatsSegment,
    transport::vhost_user::{socket::SocketSpec, socket_activation::InheritedSockets},
};
use pollux_host::{Host, StartError, configuration};
use pollux_loadgen::campaign::Target;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration is wrong, and that has been shown.
    #[error("{}: the configuration has mistakes", .0.display())]
    Shown(PathBuf),
    #[error("{}: there is no device `{wanted}`; it has {there}", .file.display())]
    NoDevice { file: PathBuf, wanted: String, there: String },
    #[error(
        "{}: one device is compared with one other, and it has {there}; name one of them with --device", .file.display()
    )]
    TooMany { file: PathBuf, there: String },
    #[error("--device {0} names a device of a configuration, and none is given: give a file that ends in .toml")]
    NoConfiguration(String),
    #[error("{}: cannot start its devices: {cause}", .file.display())]
    Start { file: PathBuf, cause: Box<StartError> },
    #[error("cannot {what}: {cause}")]
    System { what: &'static str, cause: io::Error },
}

impl Error {
    /// Whether the command line or a configuration is wrong, and nothing has failed.
    pub(crate) fn is_usage(&self) -> bool {
        !matches!(self, Error::Start { .. } | Error::System { .. })
    }
}

/// What is measured. What was started runs until this is dropped; sockets in `_folder` go before it does.
pub(crate) struct Targets {
    pub(crate) list: Vec<Target>,
    /// The CPU of the first worker that serves one of them and has one of its own.
    pub(crate) worker_cpu: Option<usize>,
    _started: Vec<Host>,
    _folder: Option<TempDir>,
}

impl Targets {
    /// Starts the devices of the configurations among `paths`: all of them, or the one that is named. If there are two
    /// paths, each must come to one target.
    pub(crate) fn start(paths: &[&Path], device: Option<&str>, shared: &Shared) -> Result<Self, Error> {
        let mut targets = Targets { list: Vec::new(), worker_cpu: None, _started: Vec::new(), _folder: None };
        if let Some(name) = device
            && !paths.iter().any(|path| is_configuration(path))
        {
            return Err(Error::NoConfiguration(name.into()));
        }
        for (index, path) in paths.iter().enumerate() {
            if is_configuration(path) {
                targets.start_devices(path, index, device, paths.len() > 1, shared)?;
            } else {
                targets.list.push(Target::ideal(path).unwrap_or_else(|| Target::Socket(path.to_path_buf())));
            }
        }
        Ok(targets)
    }

    /// Starts the devices of `file`, on sockets that nobody else can reach: those of the file may be in use.
    fn start_devices(
        &mut self,
        file: &Path,
        index: usize,
        device: Option<&str>,
        only_one: bool,
        shared: &Shared,
    ) -> Result<(), Error> {
        let system = |what| move |cause| Error::System { what, cause };
        let folder = match &mut self._folder {
            Some(folder) => folder,
            none => {
                let made = tempfile::Builder::new().prefix("pollux-bench-").tempdir();
                none.insert(made.map_err(system("make a folder for sockets"))?)
            }
        };
        // Relative paths in a configuration start at its folder, those of the command line where we are.
        let here = env::current_dir().map_err(system("tell the working folder"))?;
        let examined = examine::examine_and_show(file, Purpose::Serve, shared);
        let mut examined = examined.ok_or_else(|| Error::Shown(file.to_owned()))?;
        choose(&mut examined, file, device, only_one)?;
        for (number, device) in examined.config.devices.iter_mut().enumerate() {
            let socket = folder.path().join(format!("{index}-{number}.sock"));
            self.list.push(Target::Device {
                configuration: file.to_owned(),
                name: device.name.value.clone(),
                socket: socket.clone(),
            });
            redirect(device, socket);
        }
        self.worker_cpu = self.worker_cpu.or_else(|| worker_cpu(&examined.config));
        let stats = StatsSegment::anonymous_with(configuration::capacity(&examined.config))
            .map_err(system("make the statistics"))?;
        let host = Host::new(&examined.plugins, stats);
        host.start_exports(&examined.config, &examined.backends, InheritedSockets::default())
            .map_err(|cause| Error::Start { file: file.to_owned(), cause: Box::new(cause) })?;
        self._started.push(host);
        env::set_current_dir(&here).map_err(system("return to the working folder"))
    }
}

/// The CPU of the first worker that serves a device and has one of its own.
fn worker_cpu(config: &Config) -> Option<usize> {
    let workers = config.devices.iter().flat_map(|device| &device.workers);
    let cpu = |name: &str| config.workers.iter().find(|worker| worker.name.value == name)?.cpu.as_ref();
    workers.into_iter().find_map(|name| cpu(&name.value)).map(|cpu| cpu.value)
}

/// A regular file whose name ends in `.toml` is a configuration; all else is a socket.
fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "toml") && fs::metadata(path).is_ok_and(|file| file.is_file())
}

/// Leaves the devices that are to be measured.
fn choose(examined: &mut Examined, file: &Path, device: Option<&str>, only_one: bool) -> Result<(), Error> {
    let devices = &mut examined.config.devices;
    let there = devices.iter().map(|device| &*device.name.value).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = device {
        devices.retain(|device| device.name.value == wanted);
        if devices.is_empty() {
            return Err(Error::NoDevice { file: file.to_owned(), wanted: wanted.into(), there });
        }
    }
    if only_one && devices.len() > 1 {
        return Err(Error::TooMany { file: file.to_owned(), there });
    }
    Ok(())
}

/// Has the device served on `socket`.
fn redirect(device: &mut Device, path: PathBuf) {
    if let Transport::VhostUser(socket) = &mut device.transport {
        socket.value = SocketSpec { path, mode: None, user: None, group: None, any_file: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_a_regular_file_that_ends_in_toml() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disks.toml");
        assert!(!is_configuration(&file), "there is no such file");
        fs::write(&file, "").expect("a file");
        assert!(is_configuration(&file));
        let socket = folder.path().join("s.toml");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        assert!(!is_configuration(&socket));
    }
}
