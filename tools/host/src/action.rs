//! A verb that may take long: it is carried out on a thread of its own, so that whoever asked can stop waiting.
use std::{
    fmt::Display,
    io,
    sync::mpsc::{RecvTimeoutError, SendError, sync_channel},
    thread,
    time::{Duration, Instant},
};
use tracing::warn;

/// The patience of who waits however long it takes.
pub const FOREVER: Duration = Duration::MAX;

/// How often it is said what is waited for.
const REPORT: Duration = Duration::from_secs(5);

/// What is being done to an object, and since when.
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

    /// How long already, in whole seconds.
    pub(crate) fn seconds(&self) -> u64 {
        self.since.elapsed().as_secs()
    }
}

/// Why the end of an action is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// It goes on, for longer than whoever asked would wait.
    #[error("it is still {doing} after {seconds} s, which goes on; ask what has become of it later")]
    Late {
        /// What is being done to the object.
        doing: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// It could not begin.
    #[error("there is no thread to be had: {0}")]
    Thread(io::Error),
    /// It panicked.
    #[error("it panicked while it was {0}; please report this")]
    Panicked(&'static str),
}

/// Does `work` to the object `name`, and waits for its end, but no longer than `patience`. It goes on then, and does
/// what is to be done at its end by itself; that it fails is logged.
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
