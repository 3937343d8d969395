//! From the rooms' errors to what the API says.

use std::error::Error;

use meshd_state::StateError;
use vdc_api::{ApiError, ErrorCode};

/// A state directory that could not be read or written.
pub(crate) fn storage(error: &StateError) -> ApiError {
    let code = match error {
        StateError::Exists { .. } => ErrorCode::Conflict,
        _ => ErrorCode::Storage,
    };
    let text = error.to_string();
    let api = match text.split_once("; ") {
        Some((what, hint)) => ApiError::new(code, what).hint(hint),
        None => ApiError::new(code, text),
    };
    with_causes(api, error.source())
}

/// Something of the operating system that does not work.
pub(crate) fn system(message: impl Into<String>, error: &(dyn Error + 'static)) -> ApiError {
    with_causes(ApiError::new(ErrorCode::System, message), Some(error))
}

/// Adds an error and everything below it as causes.
pub(crate) fn with_causes(mut api: ApiError, mut cause: Option<&(dyn Error + 'static)>) -> ApiError {
    while let Some(error) = cause {
        api.causes.push(error.to_string());
        cause = error.source();
    }
    api
}

/// The VDC's task has ended; it is being started again or the daemon stops.
pub(crate) fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the VDC is being restarted or the daemon stops")
        .hint("try again in a moment")
}
