//! The host: all objects of a process, and how they end.
use crate::{device::HostedDevice, machine::Slot, objects::Objects, plugin::Plugins};
use pollux_core::{cpus, stats::StatsSegment};
use std::{
    fmt,
    mem::take,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tracing::warn;

/// How often to log what is being waited for.
const REPORT: Duration = Duration::from_secs(5);

/// All objects of a process. Dropping it stops them all.
pub struct Host {
    pub(crate) shared: Arc<Shared>,
}

/// What verbs share with the threads that carry them out.
pub(crate) struct Shared {
    pub(crate) stats: StatsSegment,
    pub(crate) plugins: Plugins,
    objects: Mutex<Objects>,
    /// An action has ended.
    ended: Condvar,
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let objects = self.shared.lock();
        write!(formatter, "Host({} devices, {} workers)", objects.devices.len(), objects.workers.len())
    }
}

impl Host {
    /// A host without objects. Their counters go to `stats`, whose capacity limits how many objects there can be at a
    /// time.
    pub fn new(plugins: &Plugins, stats: StatsSegment) -> Self {
        let (objects, ended) = (Mutex::default(), Condvar::new());
        Host { shared: Arc::new(Shared { stats, plugins: plugins.clone(), objects, ended }) }
    }

    /// The counters of all objects.
    pub fn stats(&self) -> &StatsSegment {
        &self.shared.stats
    }

    /// Keeps the calling thread, and all threads started from now on that have no CPU of their own, off these CPUs,
    /// which are for vCPUs and workers. Call it before starting anything that must keep off them.
    pub fn reserve_cpus(&self, cpus: impl IntoIterator<Item = usize>) {
        self.shared.lock().reserved_cpus.extend(cpus);
        self.shared.leave_cpus();
    }

    /// Stops everything, in order: the machine ends, if it runs, as by a signal; devices drain their queues and flush,
    /// all at once, and close their media; then the workers end. Waits for all of it, as long as that takes, and logs
    /// every few seconds what it is waiting for. Not for the thread that runs the machine. Idempotent; dropping the
    /// host does the same.
    pub fn stop(&self) {
        {
            let mut objects = self.shared.lock();
            objects.is_stopping = true;
            self.shared.stats.keep_records();
        }
        let machine = self.shared.stop_machine();
        // The machine's devices go with it.
        drop(machine);
        // All are started before any is waited for: a slow backend holds up only its own device.
        self.shared.lock().devices.iter().for_each(HostedDevice::begin_stop);
        self.shared.wait_for_actions();
        let (devices, workers) = {
            let mut objects = self.shared.lock();
            (take(&mut objects.devices), take(&mut objects.workers))
        };
        for device in devices {
            device.stop();
        }
        // Workers serve the devices to the end.
        drop(workers);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals that an action has ended.
    pub(crate) fn notify(&self) {
        self.ended.notify_all();
    }

    /// Keeps the calling thread, and what it starts, off the CPUs that are reserved for other threads.
    pub(crate) fn leave_cpus(&self) {
        let taken: Vec<usize> = {
            let objects = self.lock();
            let workers = objects.workers.iter().filter_map(|worker| worker.spec.cpu);
            workers.chain(objects.reserved_cpus.iter().copied()).collect()
        };
        cpus::leave(&taken);
    }

    /// Takes the machine, once nobody runs it any more.
    fn stop_machine(&self) -> Slot {
        let (mut objects, start) = (self.lock(), Instant::now());
        while let Slot::Running(spec, shutdown) = &objects.machine {
            shutdown.request();
            let name = spec.name.clone();
            let (locked, waited) = self.ended.wait_timeout(objects, REPORT).unwrap_or_else(PoisonError::into_inner);
            objects = locked;
            if waited.timed_out() {
                warn!("{name}: the machine is still being stopped after {} s", start.elapsed().as_secs());
            }
        }
        take(&mut objects.machine)
    }

    /// Waits until nothing is being done to any device.
    fn wait_for_actions(&self) {
        let mut objects = self.lock();
        while let Some((name, action)) = objects.action() {
            let (locked, waited) = self.ended.wait_timeout(objects, REPORT).unwrap_or_else(PoisonError::into_inner);
            objects = locked;
            if waited.timed_out() {
                warn!("{name}: it is still {} after {} s", action.doing, action.seconds());
            }
        }
    }
}
