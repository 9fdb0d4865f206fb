//! Adding and removing backends.
use crate::{
    backend::{Backend, BackendError, BackendSpec},
    host::Host,
    plugin::{PluginError, Plugins},
};

impl Host {
    /// Loads the plugin, inspects the medium, and lets devices use it from now on. `[any thread]` It waits for the
    /// plugin, and holds up no other verb.
    ///
    /// # Errors
    /// The name is taken, the plugin cannot be used, or it cannot open the medium.
    pub fn add_backend(&self, spec: BackendSpec) -> Result<(), BackendError> {
        let failed = |cause: PluginError| BackendError::Plugin { name: spec.name.clone(), cause };
        self.shared.lock().check_new_backend(&spec.name)?;
        let plugin = self.shared.plugins.load(&spec.plugin).map_err(failed)?;
        self.shared.leave_cpus();
        self.add_probed_backend(Backend::probe(spec, plugin)?)
    }

    /// As [`add_backend`](Self::add_backend), for a medium that was inspected.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_probed_backend(&self, backend: Backend) -> Result<(), BackendError> {
        let mut objects = self.shared.lock();
        objects.check_new_backend(&backend.spec().name)?;
        objects.backends.push(backend);
        Ok(())
    }

    /// Forgets a backend. `[any thread]` It does not wait: its medium is not open.
    ///
    /// # Errors
    /// There is none of that name, or devices use it.
    pub fn remove_backend(&self, name: &str) -> Result<(), BackendError> {
        let mut objects = self.shared.lock();
        let index = objects.backends.iter().position(|backend| backend.spec().name == name);
        let index = index.ok_or_else(|| objects.unknown_backend(name))?;
        match objects.users_of(|device| device.spec.block() == name) {
            Some(users) => Err(BackendError::InUse { name: name.into(), users }),
            None => {
                objects.backends.remove(index);
                Ok(())
            }
        }
    }

    /// The plugins that backends find.
    pub fn plugins(&self) -> &Plugins {
        &self.shared.plugins
    }
}
