//! Ctrl-C, where it must not simply end the process.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on, SIGINT no longer ends the process but waits here.
#[derive(Debug)]
pub(crate) struct Interrupt(Option<Signal>);

impl Interrupt {
    pub(crate) fn catch() -> Self {
        // Where the system refuses a handler, Ctrl-C ends the process as ever.
        Self(signal(SignalKind::interrupt()).ok())
    }

    /// # Cancel safety
    /// A Ctrl-C that comes while nobody waits is kept for the next wait.
    pub(crate) async fn pressed(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}
