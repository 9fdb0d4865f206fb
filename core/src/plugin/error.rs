//! Why an instance of a plugin could not be opened or used, whichever interface it has.
use super::load::LoadError;
use pollux_abi::text::TextBuffer;

/// Room for a plugin's message, in bytes.
const MESSAGE_CAPACITY: usize = 2048;

/// Why a backend could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The plugin cannot be used at all.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The plugin refused.
    #[error("{name}: {reason}")]
    Refused {
        /// The instance.
        name: String,
        /// The plugin's reason.
        reason: String,
    },
    /// A control call that waited in vain for an earlier one.
    #[error(
        "{name}: the plugin {plugin} does not answer `statistics`, and takes no other call meanwhile; look at its \
         medium, or stop Pollux"
    )]
    Hangs {
        /// The instance.
        name: String,
        /// The plugin.
        plugin: String,
    },
    /// The plugin describes something impossible.
    #[error("{name}: the plugin {plugin} describes an impossible medium: {what}")]
    Description {
        /// The instance.
        name: String,
        /// The plugin.
        plugin: String,
        /// What is impossible.
        what: String,
    },
}

/// Makes a control call and turns its failure into words.
pub(super) fn with_reason(name: &str, call: impl FnOnce(*mut TextBuffer) -> i32) -> Result<(), BackendError> {
    let mut room = vec![0; MESSAGE_CAPACITY];
    let mut buffer = TextBuffer::new(&mut room);
    let result = call(&mut buffer);
    if result >= 0 {
        return Ok(());
    }
    let length = buffer.length.min(MESSAGE_CAPACITY);
    let mut reason = String::from_utf8_lossy(&room[..length]).into_owned();
    if reason.is_empty() {
        reason = std::io::Error::from_raw_os_error(result.saturating_neg()).to_string();
    }
    Err(BackendError::Refused { name: name.into(), reason })
}
