//! A program that runs beside the test.
use super::Ran;
use std::process::{Child, Command};

/// A program that was started. Killed when dropped.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Running::of(command.spawn().expect("starts"))
    }

    /// One that was started otherwise.
    pub(crate) fn of(child: Child) -> Self {
        Running(Some(child))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it runs")
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(self.id() as i32, signal) }, 0);
    }

    /// Ends it at once, in the middle of whatever it does. Once is enough.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().and_then(|()| child.wait()).expect("it ends");
        }
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ran {
        let child = self.0.take().expect("it runs");
        child.wait_with_output().expect("it ends").into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
