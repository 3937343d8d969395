//! What a forked child tells the shim before it becomes the container's program, over a pair of sockets that execve closes.
//!
//! The shim reads: messages, then the end. An end without a failure means that the program runs.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Bytes of one report; longer texts are cut.
const REPORT_BYTES_MAX: usize = 4_096;

/// What happened on the way to the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The process exists under this number and waits or goes on.
    Process(u32),
    /// The first word of the command names no file.
    NoProgram(String),
    /// It names something that cannot be executed by this user.
    NotExecutable(String),
    /// execve itself refused, with this errno.
    ExecFailed(i32),
    /// Something before that failed.
    Failed(String),
    /// The master of the terminal came along.
    Terminal,
}

impl Report {
    /// The exit code that container users know for this failure.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        match self {
            Self::NoProgram(_) | Self::ExecFailed(libc::ENOENT) => Some(127),
            Self::NotExecutable(_) | Self::ExecFailed(_) => Some(126),
            Self::Failed(_) => Some(125),
            Self::Process(_) | Self::Terminal => None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Process(pid) => (b'P', pid.to_le_bytes().to_vec()),
            Self::NoProgram(name) => (b'N', name.as_bytes().to_vec()),
            Self::NotExecutable(name) => (b'X', name.as_bytes().to_vec()),
            Self::ExecFailed(errno) => (b'e', errno.to_le_bytes().to_vec()),
            Self::Failed(text) => (b'F', text.as_bytes().to_vec()),
            Self::Terminal => (b'T', Vec::new()),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&body);
        bytes.truncate(REPORT_BYTES_MAX);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, body) = bytes.split_first()?;
        let text = || String::from_utf8_lossy(body).into_owned();
        Some(match kind {
            b'P' => Self::Process(u32::from_le_bytes(body.try_into().ok()?)),
            b'N' => Self::NoProgram(text()),
            b'X' => Self::NotExecutable(text()),
            b'e' => Self::ExecFailed(i32::from_le_bytes(body.try_into().ok()?)),
            b'F' => Self::Failed(text()),
            b'T' => Self::Terminal,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::NoProgram(name) => write!(f, "no such program in the image: {name}"),
            Self::NotExecutable(name) => write!(f, "{name} cannot be executed by this user"),
            Self::ExecFailed(errno) => write!(f, "execve: {}", io::Error::from_raw_os_error(*errno)),
            Self::Failed(text) => f.write_str(text),
            Self::Terminal => f.write_str("terminal"),
        }
    }
}

/// The pair: the shim's end, and the end that children write to.
///
/// # Errors
/// What socketpair(2) says.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one report; `terminal` goes along with it.
///
/// # Errors
/// What sendmsg(2) says.
pub(crate) fn send(socket: impl AsFd, report: &Report, terminal: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = report.encode();
    let Some(terminal) = terminal else {
        // write(2) and not send(2): a seccomp filter may already be in force.
        rustix::io::write(socket, &bytes)?;
        return Ok(());
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next report, or `None` once every writer is gone.
///
/// # Errors
/// What recvmsg(2) says; EAGAIN from a socket that does not block and has nothing; a report that is none.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let mut bytes = [0; REPORT_BYTES_MAX];
    let (count, terminal) = receive_with(socket, &mut bytes)?;
    if count == 0 {
        return Ok(None);
    }
    let report = Report::decode(&bytes[..count]).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((report, terminal)))
}

/// The descriptor that comes with the next message, whatever that says.
///
/// # Errors
/// What recvmsg(2) says.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    Ok(receive_with(socket, &mut [0; 256])?.1)
}

fn receive_with(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for entry in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = entry {
            descriptor = fds.last();
        }
    }
    Ok((message.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_survives_the_way_and_the_end_is_seen() {
        let (ours, theirs) = pair().expect("a pair");
        let reports = [
            Report::Process(77),
            Report::NoProgram("nosuch".to_owned()),
            Report::NotExecutable("/etc/passwd".to_owned()),
            Report::ExecFailed(libc::ENOEXEC),
            Report::Failed("step: why".to_owned()),
        ];
        for report in &reports {
            send(&theirs, report, None).expect("sent");
        }
        send(&theirs, &Report::Terminal, Some(ours.as_fd())).expect("sent with a descriptor");
        drop(theirs);
        for report in reports {
            assert_eq!(receive(&ours).expect("received").expect("a report").0, report);
        }
        let (report, terminal) = receive(&ours).expect("received").expect("a report");
        assert_eq!((report, terminal.is_some()), (Report::Terminal, true));
        assert!(receive(&ours).expect("the end").is_none());
    }

    #[test]
    fn exit_codes_are_those_of_other_container_tools() {
        for (report, code) in [
            (Report::NoProgram(String::new()), Some(127)),
            (Report::ExecFailed(libc::ENOENT), Some(127)),
            (Report::NotExecutable(String::new()), Some(126)),
            (Report::ExecFailed(libc::EACCES), Some(126)),
            (Report::Failed(String::new()), Some(125)),
            (Report::Process(1), None),
        ] {
            assert_eq!(report.exit_code(), code, "{report:?}");
        }
    }
}
