//! A step that the host refused.

use std::io;

/// What was tried, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub(crate) struct StepError {
    pub(crate) step: &'static str,
    #[source]
    pub(crate) source: io::Error,
}

impl StepError {
    pub(crate) fn new(step: &'static str, source: io::Error) -> Self {
        Self { step, source }
    }
}

/// Names the step of a failed call.
pub(crate) trait AtStep<T> {
    /// `step` completes the sentence "could not …".
    fn at(self, step: &'static str) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(step, error.into()))
    }
}
