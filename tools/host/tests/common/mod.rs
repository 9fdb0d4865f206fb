//! A host on plugins of the workspace.
//!
//! Each test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod churn;

use pollux_core::{
    plugin::PluginPath,
    queue::QueueOptions,
    stats::{Capacity, StatsSegment},
    transport::vhost_user::socket::SocketSpec,
    worker::IdlePolicy,
};
use pollux_host::{
    BackendSpec, DeviceSpec, ExportSpec, Host, Plugins, WorkerSpec,
    device::{BlkSpec, DeviceKind},
};
use pollux_testing::build;
use std::{path::Path, time::Duration};

/// How long a test waits for what should be quick.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The worker of all tests.
pub(crate) const WORKER: &str = "io0";

/// A host with a worker, and room for two devices of a queue each.
pub(crate) fn host(folder: &Path) -> Host {
    let stats = StatsSegment::anonymous_with(Capacity { workers: 1, queues: 2, backends: 2 }).expect("statistics");
    let host = Host::new(&Plugins::new(&PluginPath::default(), folder), stats);
    let worker = WorkerSpec { name: WORKER.into(), cpu: None, idle: IdlePolicy::Adaptive };
    host.add_worker(worker).expect("a worker");
    host
}

/// A medium in memory.
pub(crate) fn block(name: &str) -> BackendSpec {
    let plugin = build::plugin("pollux-mem").display().to_string();
    BackendSpec { name: name.into(), plugin, options: r#"{"size": "4M"}"#.into(), read_only: false }
}

/// A device of one queue in front of the medium `block`.
pub(crate) fn device(name: &str, block: &str) -> DeviceSpec {
    DeviceSpec {
        name: name.into(),
        workers: vec![WORKER.into()],
        queues: QueueOptions { size: 128, ..QueueOptions::default() },
        kind: DeviceKind::Blk(BlkSpec { block: block.into(), serial: String::new() }),
    }
}

/// A socket in a folder.
pub(crate) fn socket(path: &Path) -> ExportSpec {
    ExportSpec::Made(SocketSpec { path: path.to_owned(), mode: None, user: None, group: None, any_file: false })
}
