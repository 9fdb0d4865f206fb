//! Adding and removing workers.
use crate::{
    host::Host,
    worker::{RunningWorker, WorkerError, WorkerSpec},
};
use pollux_core::worker::{IdlePolicy, Worker};

impl Host {
    /// Starts a worker. `[any thread]` It waits until the thread runs on its CPU, which nothing holds up.
    ///
    /// # Errors
    /// The name or the CPU is taken, or the thread cannot be started or pinned.
    pub fn add_worker(&self, spec: WorkerSpec) -> Result<(), WorkerError> {
        let mut objects = self.shared.lock();
        if objects.workers.iter().any(|worker| worker.spec.name == spec.name) {
            return Err(WorkerError::Exists(spec.name));
        }
        let has_cpu = |worker: &&RunningWorker| {
            let spins = [worker.spec.idle, spec.idle].contains(&IdlePolicy::Spin);
            spec.cpu.is_some() && worker.spec.cpu == spec.cpu && spins
        };
        if let (Some(other), Some(cpu)) = (objects.workers.iter().find(has_cpu), spec.cpu) {
            let other = other.spec.name.clone();
            return Err(WorkerError::CpuTaken { name: spec.name, other, cpu });
        }
        let Some(stats) = self.shared.stats.add_worker(&spec.name) else {
            return Err(WorkerError::Statistics(spec.name));
        };
        let worker = Worker::spawn_counted(&spec.name, spec.cpu, spec.idle, stats)?;
        objects.workers.push(RunningWorker { spec, worker });
        Ok(())
    }

    /// Ends a worker. `[any thread]` It waits for the thread, which nothing holds up, since it serves no device.
    ///
    /// # Errors
    /// There is none of that name, or it serves devices.
    pub fn remove_worker(&self, name: &str) -> Result<(), WorkerError> {
        let mut objects = self.shared.lock();
        let index = objects.workers.iter().position(|worker| worker.spec.name == name);
        let index = index.ok_or_else(|| objects.unknown_worker(name))?;
        if let Some(users) = objects.users_of(|device| device.spec.workers.iter().any(|worker| worker == name)) {
            return Err(WorkerError::InUse { name: name.into(), users });
        }
        let ended = objects.workers.remove(index);
        drop(objects);
        drop(ended);
        Ok(())
    }
}
