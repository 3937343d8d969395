//! What can go wrong with a lab.

use std::io;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, Error>;

/// A lab could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("missing tools: {0}")]
    ToolsMissing(String),
    #[error("cannot {action}")]
    System {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` on {host} ended with {status}\n{output}")]
    CommandFailed { host: String, command: String, status: String, output: String },
    #[error("`{command}` on {host} still ran after {timeout:?}\n{output}")]
    CommandLate { host: String, command: String, timeout: Duration, output: String },
    #[error("waited {timeout:?} in vain for {what}; last seen: {last}")]
    WaitedInVain { what: String, timeout: Duration, last: String },
    #[error("{name:?} is not a free name: 1 to 32 of a-z, 0-9 and '-', each once per lab")]
    Name { name: String },
    #[error("the lab is out of {0}")]
    OutOf(&'static str),
}

/// Adds to an operating-system error what was being attempted.
pub(crate) trait Attempt<T> {
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::System { action: action(), source: e.into() })
    }
}
