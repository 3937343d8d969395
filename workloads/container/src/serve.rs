//! One copy, served to one client: a socket with a token, then frames that carry the tar stream.

use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use workloads_wire::frame::{self, BODY_BYTES_MAX, Frame, Kind};

use crate::copy::Tree;
use crate::request::Copy;

/// How long the client may take to come, and to show its token.
const COME_MAX: Duration = Duration::from_secs(10);
/// How long it may leave the stream standing.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What is copied, and to or from where.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) tree: Tree,
    pub(crate) direction: Copy,
    pub(crate) path: std::path::PathBuf,
    pub(crate) token: [u8; 16],
}

/// Waits for the client, serves it, and takes the socket away.
pub(crate) fn serve(listener: &UnixListener, socket: &Path, job: &Job) {
    let served = accept(listener, job.token).and_then(|client| answer(&client, job));
    if let Err(error) = served {
        tracing::debug!(%error, "a copy was not finished");
    }
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, "the socket of a copy was gone already");
    }
}

fn accept(listener: &UnixListener, token: [u8; 16]) -> io::Result<UnixStream> {
    let wait = Timespec::try_from(COME_MAX).map_err(io::Error::other)?;
    if rustix::event::poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)], Some(&wait))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (mut client, _) = listener.accept()?;
    client.set_read_timeout(Some(COME_MAX))?;
    let mut shown = [0; 16];
    client.read_exact(&mut shown)?;
    if shown != token {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    client.set_read_timeout(Some(STALL_MAX))?;
    client.set_write_timeout(Some(STALL_MAX))?;
    Ok(client)
}

/// Copies, and tells the end: an error in words where there is one, then a status.
fn answer(client: &UnixStream, job: &Job) -> io::Result<()> {
    let copied = match job.direction {
        Copy::Out => job.tree.write(&job.path, BufWriter::with_capacity(BODY_BYTES_MAX, Frames { client })),
        Copy::In => job.tree.read(&job.path, Input { client, kept: Vec::new(), body: 0, over: false }),
    };
    let mut last = Vec::new();
    if let Err(error) = &copied {
        frame::encode(Kind::Error, error.to_string().as_bytes(), &mut last);
    }
    frame::encode(Kind::Exit, &i32::from(copied.is_err()).to_be_bytes(), &mut last);
    let mut client = client;
    client.write_all(&last)?;
    copied
}

/// Writes become frames of output.
struct Frames<'a> {
    client: &'a UnixStream,
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut framed = Vec::with_capacity(bytes.len() + 16);
        frame::encode(Kind::Stdout, bytes, &mut framed);
        self.client.write_all(&framed)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.client.flush()
    }
}

/// Frames of input become reads.
struct Input<'a> {
    client: &'a UnixStream,
    /// At most one frame and one read.
    kept: Vec<u8>,
    /// Bytes at the front of `kept` that are input.
    body: usize,
    over: bool,
}

impl Read for Input<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.body == 0 && !self.over {
            let decoded = frame::decode(&self.kept).map_err(|_| io::ErrorKind::InvalidData)?;
            if let Some(Frame { kind, body, length }) = decoded {
                let (kind, body) = (kind, body.len());
                match kind {
                    Kind::Stdin => {
                        self.kept.drain(..length - body);
                        self.body = body;
                    }
                    kind => {
                        self.kept.drain(..length);
                        self.over = kind == Kind::StdinEof;
                    }
                }
                continue;
            }
            let mut more = vec![0; BODY_BYTES_MAX];
            let read = self.client.read(&mut more)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.kept.extend_from_slice(&more[..read]);
        }
        let taken = self.body.min(to.len());
        to[..taken].copy_from_slice(&self.kept[..taken]);
        self.kept.drain(..taken);
        self.body -= taken;
        Ok(taken)
    }
}
