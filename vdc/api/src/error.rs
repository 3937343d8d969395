//! How an operation fails.
//!
//! The message is for the user, the hint says what to do, the code is for programs. Internal causes (a file's errno, a
//! peer's address) belong to the daemon's log, found by the request id; a cause listed here is one the user can act on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of failure it is. Codes keep their meaning for ever; new ones may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is malformed; `field` names the culprit where there is one.
    BadRequest,
    /// The caller may not do this on this node (uid or group).
    PermissionDenied,
    /// The VDC's records do not allow it: this node lacks the role or the delegation.
    Refused,
    /// Only the owners may do this, and no owner key is kept on this node: repeat the request with one.
    OwnerKeyNeeded,
    NotFound,
    MethodNotAllowed,
    /// It would contradict what exists: a taken name, a second VDC of one name.
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    /// The operation needs the connection for itself (HTTP's `Upgrade`).
    UpgradeRequired,
    /// This node is in no VDC.
    NoVdc,
    /// This node is in several VDCs and the request names none.
    AmbiguousVdc,
    /// A name or key prefix matches more than one thing.
    AmbiguousName,
    /// Truncated, damaged, or for another purpose.
    InviteInvalid,
    InviteExpired,
    InviteUsed,
    InviteRevoked,
    /// Clocks differ so much that the operation would not be believed elsewhere.
    ClockSkew,
    /// Another node was needed and could not be reached.
    Unreachable,
    /// There is no such image here, or the registry has none of that name.
    ImageNotFound,
    /// The image is damaged, not what its digest says, or nothing that can be run here.
    ImageInvalid,
    RegistryUnreachable,
    /// The registry wants other credentials, or none help.
    RegistryDenied,
    /// The image has no such user or group.
    UnknownUser,
    /// Somebody else serves the port of the host.
    PortTaken,
    /// The workload does not run.
    NotRunning,
    /// The image has no such program.
    ProgramNotFound,
    /// The program cannot be executed.
    ProgramNotExecutable,
    /// The other node does not let this one do that: the right, its consent or the operation is missing.
    RemoteRefused,
    /// The other node does not answer over the infra plane.
    RemoteUnreachable,
    /// There is no coordination group of that home.
    UnknownGroup,
    /// Too few voters of the coordination group answer: nothing can be changed, and nothing read that must be current.
    NoQuorum,
    /// This group does not decide about the thing; another one is its home.
    WrongHome,
    /// The changes asked for are older than what is kept of them; read the whole and go on from there.
    Compacted,
    /// No backup of a coordination group, or one that is truncated or damaged.
    BackupInvalid,
    /// A backup of another VDC or of another home.
    BackupForeign,
    /// The state directory is full or cannot be written.
    Storage,
    /// The operating system does not let the daemon do what is needed (no TUN, no nftables, port in use).
    System,
    /// Too many requests at once; try again.
    Busy,
    Timeout,
    /// The daemon is starting or stopping.
    Unavailable,
    /// A defect of the daemon.
    Internal,
    /// A code of a newer version.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest
            | Self::InviteInvalid
            | Self::BackupInvalid
            | Self::ImageInvalid
            | Self::UnknownUser
            | Self::ProgramNotFound
            | Self::ProgramNotExecutable => 400,
            Self::PermissionDenied
            | Self::Refused
            | Self::OwnerKeyNeeded
            | Self::RegistryDenied
            | Self::RemoteRefused => 403,
            Self::NotFound | Self::ImageNotFound | Self::UnknownGroup => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict
            | Self::NoVdc
            | Self::AmbiguousVdc
            | Self::AmbiguousName
            | Self::InviteUsed
            | Self::PortTaken
            | Self::NotRunning
            | Self::WrongHome
            | Self::BackupForeign
            | Self::ClockSkew => 409,
            Self::InviteExpired | Self::InviteRevoked | Self::Compacted => 410,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::UpgradeRequired => 426,
            Self::Internal | Self::System | Self::Unknown => 500,
            Self::Unreachable | Self::RegistryUnreachable | Self::RemoteUnreachable => 502,
            Self::Busy | Self::Unavailable | Self::NoQuorum => 503,
            Self::Timeout => 504,
            Self::Storage => 507,
        }
    }

    /// The code as it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::PermissionDenied => "permission-denied",
            Self::Refused => "refused",
            Self::OwnerKeyNeeded => "owner-key-needed",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Conflict => "conflict",
            Self::TooLarge => "too-large",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::UpgradeRequired => "upgrade-required",
            Self::NoVdc => "no-vdc",
            Self::AmbiguousVdc => "ambiguous-vdc",
            Self::AmbiguousName => "ambiguous-name",
            Self::InviteInvalid => "invite-invalid",
            Self::InviteExpired => "invite-expired",
            Self::InviteUsed => "invite-used",
            Self::InviteRevoked => "invite-revoked",
            Self::ClockSkew => "clock-skew",
            Self::Unreachable => "unreachable",
            Self::ImageNotFound => "image-not-found",
            Self::ImageInvalid => "image-invalid",
            Self::RegistryUnreachable => "registry-unreachable",
            Self::RegistryDenied => "registry-denied",
            Self::UnknownUser => "unknown-user",
            Self::PortTaken => "port-taken",
            Self::NotRunning => "not-running",
            Self::ProgramNotFound => "program-not-found",
            Self::ProgramNotExecutable => "program-not-executable",
            Self::RemoteRefused => "remote-refused",
            Self::RemoteUnreachable => "remote-unreachable",
            Self::UnknownGroup => "unknown-group",
            Self::NoQuorum => "no-quorum",
            Self::WrongHome => "wrong-home",
            Self::Compacted => "compacted",
            Self::BackupInvalid => "backup-invalid",
            Self::BackupForeign => "backup-foreign",
            Self::Storage => "storage",
            Self::System => "system",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

/// Why an operation failed, as the code behind the API says it. The server adds the request id: see [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// One lower-case phrase without a full stop.
    pub message: String,
    /// What to do about it: an imperative, often a command.
    pub hint: Option<String>,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// The request field that is wrong, as a path: `ports[1]`.
    pub field: Option<String>,
}

impl ApiError {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, causes: Vec::new(), field: None }
    }

    #[must_use]
    pub fn bad_request(field: &str, message: impl Into<String>) -> Self {
        let error = Self::new(ErrorCode::BadRequest, message);
        Self { field: Some(field.to_owned()), ..error }
    }

    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Refused, message)
    }

    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Adds one cause below those already there.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds an error and everything below it as causes. Only for errors whose text the user may see.
    #[must_use]
    pub fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The error as it goes over the wire.
    #[must_use]
    pub fn into_body(self, request_id: &str) -> ErrorBody {
        let Self { code, message, hint, causes, field } = self;
        ErrorBody { code, message, hint, causes, field, request_id: request_id.to_owned() }
    }
}

/// The body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub code: ErrorCode,
    /// One lower-case phrase without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// The request field that is wrong, as a path: `ports[1]`.
    pub field: Option<String>,
    /// Finds the request in the daemon's log.
    #[schema(example = "6f1c20b3-00002a")]
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_text_is_its_serialised_form() {
        for code in [
            ErrorCode::BadRequest,
            ErrorCode::PermissionDenied,
            ErrorCode::Refused,
            ErrorCode::OwnerKeyNeeded,
            ErrorCode::NotFound,
            ErrorCode::MethodNotAllowed,
            ErrorCode::Conflict,
            ErrorCode::TooLarge,
            ErrorCode::UnsupportedMediaType,
            ErrorCode::UpgradeRequired,
            ErrorCode::NoVdc,
            ErrorCode::AmbiguousVdc,
            ErrorCode::AmbiguousName,
            ErrorCode::InviteInvalid,
            ErrorCode::InviteExpired,
            ErrorCode::InviteUsed,
            ErrorCode::InviteRevoked,
            ErrorCode::ClockSkew,
            ErrorCode::Unreachable,
            ErrorCode::ImageNotFound,
            ErrorCode::ImageInvalid,
            ErrorCode::RegistryUnreachable,
            ErrorCode::RegistryDenied,
            ErrorCode::UnknownUser,
            ErrorCode::PortTaken,
            ErrorCode::NotRunning,
            ErrorCode::ProgramNotFound,
            ErrorCode::ProgramNotExecutable,
            ErrorCode::RemoteRefused,
            ErrorCode::RemoteUnreachable,
            ErrorCode::UnknownGroup,
            ErrorCode::NoQuorum,
            ErrorCode::WrongHome,
            ErrorCode::Compacted,
            ErrorCode::BackupInvalid,
            ErrorCode::BackupForeign,
            ErrorCode::Storage,
            ErrorCode::System,
            ErrorCode::Busy,
            ErrorCode::Timeout,
            ErrorCode::Unavailable,
            ErrorCode::Internal,
            ErrorCode::Unknown,
        ] {
            assert_eq!(serde_json::to_value(code).expect("plain"), code.as_str());
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn unknown_code_is_read_as_unknown() {
        assert_eq!(serde_json::from_str::<ErrorCode>("\"of-the-future\"").expect("tolerated"), ErrorCode::Unknown);
    }

    #[test]
    fn caused_by_walks_the_chain() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write state")]
        struct Outer(#[source] std::fmt::Error);
        let error = ApiError::new(ErrorCode::Storage, "the change was not kept").caused_by(&Outer(std::fmt::Error));
        assert_eq!(error.causes, ["cannot write state", &std::fmt::Error.to_string()]);
    }
}
