//! A verb that may take long: it is carried out on a thread of its own, so that its caller can stop waiting.
use std::{
    fmt::Display,
    io,
    sync::mpsc::{RecvTimeoutError, SendError, sync_channel},
    thread,
    time::{Duration, Instant},
};
use tracing::warn;

/// The patience of a caller that waits however long it takes.
pub const FOREVER: Duration = Duration::MAX;

/// How often to log what is being waited for.
const REPORT: Duration = Duration::from_secs(5);

/// The action in progress on an object, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Action {
    /// In the middle of a sentence: `being removed`.
    pub(crate) doing: &'static str,
    pub(crate) since: Instant,
}

impl Action {
    pub(crate) fn new(doing: &'static str) -> Self {
        Action { doing, since: Instant::now() }
    }

    /// For how long already, in whole seconds.
    pub(crate) fn seconds(&self) -> u64 {
        self.since.elapsed().as_secs()
    }
}

/// Why the end of an action is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// It continues, for longer than its caller would wait.
    #[error("it is still {doing} after {seconds} s and continues; check the result later")]
    Late {
        /// What is being done to the object.
        doing: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// It could not start.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// It panicked.
    #[error("it panicked while it was {0}; please report this")]
    Panicked(&'static str),
}

/// Does `work` to the object `name`, and waits for its end, but no longer than `patience`. After that, it continues and
/// finishes by itself; a failure is logged.
pub(crate) fn carry_out<T, E>(
    name: &str,
    action: Action,
    patience: Duration,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, Unfinished>
where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let (sender, receiver) = sync_channel(1);
    let run = move || {
        if let Err(SendError(Err(error))) = sender.send(work()) {
            warn!("{error}");
        }
    };
    thread::Builder::new().name(format!("verb-{name}")).spawn(run).map_err(Unfinished::Thread)?;
    loop {
        let left = patience.saturating_sub(action.since.elapsed());
        match receiver.recv_timeout(left.min(REPORT)) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => return Err(Unfinished::Panicked(action.doing)),
            Err(RecvTimeoutError::Timeout) if action.since.elapsed() >= patience => {
                return Err(Unfinished::Late { doing: action.doing, seconds: action.seconds() });
            }
            Err(RecvTimeoutError::Timeout) => {
                warn!("{name}: it is still {} after {} s", action.doing, action.seconds());
            }
        }
    }
}
