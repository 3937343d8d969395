//! How a command fails: `error:`, `caused by:`, `hint:`, and an exit code that scripts can rely on.

use std::fmt::Write;
use std::process::ExitCode;

use vdc_api::{ErrorBody, ErrorCode};

use crate::terminal::{Paint, Style};

/// Exit codes. They keep their meaning for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    /// The command line, or what it says, makes no sense.
    Usage,
    /// The daemon cannot be reached.
    NoDaemon,
    /// The daemon, the VDC's records or the system do not allow it.
    Refused,
    /// By Ctrl-C: 128 + SIGINT.
    Interrupted,
    /// What a program in a container ended with, or 125 to 127 if it did not run.
    Program(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NoDaemon => 3,
            Exit::Refused => 4,
            Exit::Interrupted => 130,
            Exit::Program(code) => code,
        })
    }
}

/// Why a command ends without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Empty if everything was said already.
    pub(crate) message: String,
    pub(crate) causes: Vec<String>,
    pub(crate) hint: Option<String>,
    /// Finds it in the daemon's log.
    pub(crate) request_id: Option<String>,
    /// The daemon's code, if it was the daemon that failed or refused.
    pub(crate) code: Option<ErrorCode>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            request_id: None,
            code: None,
        }
    }

    /// Ends with this exit code and without another word.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self { exit, ..Self::new("") }
    }

    pub(crate) fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    pub(crate) fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The text for stderr.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut text = String::new();
        if self.message.is_empty() {
            return text;
        }
        let mut line = |label: &str, paint, rest: &str| {
            // Continuation lines of a message stand below its first word.
            let rest = rest.replace('\n', &format!("\n{}", " ".repeat(label.len() + 2)));
            writeln!(text, "{} {rest}", style.paint(paint, &format!("{label}:"))).expect("writing to a string");
        };
        line("error", Paint::Bad, &self.message);
        for cause in &self.causes {
            line("caused by", Paint::Bad, cause);
        }
        if let Some(hint) = &self.hint {
            line("hint", Paint::Note, hint);
        }
        if let Some(id) = &self.request_id {
            line("request", Paint::Dim, id);
        }
        text
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        let ErrorBody { code, mut message, hint, causes, field, request_id } = body;
        if let Some(field) = field.filter(|field| !message.contains(field.as_str())) {
            message = format!("{message} (in {field})");
        }
        let exit = exit_of(code);
        // Refusals explain themselves; for the rest the log knows more.
        let in_log = matches!(
            code,
            ErrorCode::Internal | ErrorCode::System | ErrorCode::Storage | ErrorCode::Timeout | ErrorCode::Unknown
        );
        Self { exit, message, causes, hint, request_id: in_log.then_some(request_id), code: Some(code) }
    }
}

fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::BadRequest
        | ErrorCode::UnknownUser
        | ErrorCode::NoVdc
        | ErrorCode::AmbiguousVdc
        | ErrorCode::AmbiguousName => Exit::Usage,
        ErrorCode::PermissionDenied
        | ErrorCode::Refused
        | ErrorCode::OwnerKeyNeeded
        | ErrorCode::InviteInvalid
        | ErrorCode::InviteExpired
        | ErrorCode::InviteUsed
        | ErrorCode::InviteRevoked
        | ErrorCode::RegistryDenied
        | ErrorCode::RemoteRefused
        | ErrorCode::BackupForeign => Exit::Refused,
        ErrorCode::Unavailable => Exit::NoDaemon,
        ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::UpgradeRequired
        | ErrorCode::ImageNotFound
        | ErrorCode::ImageInvalid
        | ErrorCode::RegistryUnreachable
        | ErrorCode::RemoteUnreachable
        | ErrorCode::PortTaken
        | ErrorCode::NotRunning
        | ErrorCode::ProgramNotFound
        | ErrorCode::ProgramNotExecutable
        | ErrorCode::ClockSkew
        | ErrorCode::Unreachable
        | ErrorCode::UnknownGroup
        | ErrorCode::NoQuorum
        | ErrorCode::WrongHome
        | ErrorCode::Compacted
        | ErrorCode::BackupInvalid
        | ErrorCode::Storage
        | ErrorCode::System
        | ErrorCode::Busy
        | ErrorCode::Timeout
        | ErrorCode::Internal
        | ErrorCode::Unknown => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::ApiError;

    use super::*;

    #[test]
    fn error_is_rendered_line_by_line() {
        let body = ApiError::new(ErrorCode::Storage, "the invite was not kept")
            .cause("cannot write /var/lib/meshd")
            .cause("no space left on device")
            .hint("free some space\nor move the directory")
            .into_body("6f1c20b3-00002a");
        assert_eq!(
            Failure::from(body).render(Style::new(false)),
            "error: the invite was not kept\n\
             caused by: cannot write /var/lib/meshd\n\
             caused by: no space left on device\n\
             hint: free some space\n      or move the directory\n\
             request: 6f1c20b3-00002a\n"
        );
    }

    #[test]
    fn colours_wrap_labels_only() {
        let text = Failure::new("no").render(Style::new(true));
        assert_eq!(text, "\u{1b}[1;31merror:\u{1b}[0m no\n");
    }

    #[test]
    fn codes_have_stable_exits() {
        for (code, exit) in [
            (ErrorCode::NotFound, 1),
            (ErrorCode::Internal, 1),
            (ErrorCode::Unknown, 1),
            (ErrorCode::BadRequest, 2),
            (ErrorCode::AmbiguousVdc, 2),
            (ErrorCode::Unavailable, 3),
            (ErrorCode::PermissionDenied, 4),
            (ErrorCode::InviteUsed, 4),
        ] {
            let failure = Failure::from(ApiError::new(code, "m").into_body("id"));
            assert_eq!(ExitCode::from(failure.exit), ExitCode::from(exit), "{code:?}");
        }
    }

    #[test]
    fn field_is_named_once() {
        let body = |message: &str| ApiError::bad_request("ports[1]", message).into_body("id");
        assert_eq!(Failure::from(body("not a port")).message, "not a port (in ports[1])");
        assert_eq!(Failure::from(body("ports[1] is not a port")).message, "ports[1] is not a port");
    }
}
