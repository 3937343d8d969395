//! One connection to a program's streams: frames in, frames out, both bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use workloads_wire::frame::{self, BODY_BYTES_MAX, Frame, Kind};

/// Bytes waiting for one client. Beyond this nothing more is read from the program, so that back-pressure reaches it.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Stdin(Vec<u8>),
    StdinEof,
    Resize { rows: u16, columns: u16 },
    Signal(u8),
}

/// The connection is over: hung up, or not speaking our protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Since when the output waits without a byte having left.
    pub(crate) stuck_since: Option<Instant>,
    /// Ends once the output has left.
    pub(crate) finished: bool,
}

impl Client {
    /// `socket` does not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, input: Vec::new(), output: Vec::new(), stuck_since: None, finished: false }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }

    /// Queues a frame and sends what the socket takes.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) fn push(&mut self, kind: Kind, body: &[u8], now: Instant) -> Result<(), Gone> {
        frame::encode(kind, body, &mut self.output);
        self.flush(now)
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) fn flush(&mut self, now: Instant) -> Result<(), Gone> {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(0) => return Err(Gone),
                Ok(sent) => {
                    self.output.drain(..sent);
                    self.stuck_since = None;
                }
                Err(Errno::AGAIN) => {
                    self.stuck_since.get_or_insert(now);
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        // A quiet client costs no memory.
        self.output = Vec::new();
        Ok(())
    }

    /// Reads once, and returns the next thing said if it is whole. Called again while it returns something.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Gone> {
        match rustix::io::read(&self.socket, &mut *buffer) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// Takes the next whole frame that says something.
    ///
    /// # Errors
    /// [`Gone`]: what came is no frame, or none that a client sends.
    pub(crate) fn next(&mut self) -> Result<Option<Said>, Gone> {
        loop {
            let Some(Frame { kind, body, length }) = frame::decode(&self.input).map_err(|_| Gone)? else {
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                debug_assert!(self.input.len() < BODY_BYTES_MAX * 3, "one frame and one read");
                return Ok(None);
            };
            let said = match (kind, body) {
                (Kind::Stdin, bytes) => Some(Said::Stdin(bytes.to_vec())),
                (Kind::StdinEof, _) => Some(Said::StdinEof),
                (Kind::Resize, &[a, b, c, d]) => {
                    Some(Said::Resize { rows: u16::from_be_bytes([a, b]), columns: u16::from_be_bytes([c, d]) })
                }
                (Kind::Signal, &[signal]) => Some(Said::Signal(signal)),
                (Kind::Ping, _) => None,
                (Kind::Resize | Kind::Signal | Kind::Stdout | Kind::Stderr | Kind::Exit | Kind::Error, _) => {
                    return Err(Gone);
                }
            };
            self.input.drain(..length);
            if said.is_some() {
                return Ok(said);
            }
        }
    }
}

/// Sets a descriptor to not block.
///
/// # Errors
/// What fcntl(2) says.
pub(crate) fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connected() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        (Client::new(ours.into()), theirs)
    }

    #[test]
    fn clients_say_what_they_may_and_nothing_else() {
        let (mut client, mut peer) = connected();
        let mut bytes = Vec::new();
        frame::encode(Kind::Ping, b"", &mut bytes);
        frame::encode(Kind::Stdin, b"in", &mut bytes);
        frame::encode(Kind::Resize, &[0, 24, 0, 80], &mut bytes);
        frame::encode(Kind::Stdout, b"a client has no output", &mut bytes);
        peer.write_all(&bytes).expect("written");
        client.read(&mut [0; 1024]).expect("read");
        assert_eq!(client.next(), Ok(Some(Said::Stdin(b"in".to_vec()))));
        assert_eq!(client.next(), Ok(Some(Said::Resize { rows: 24, columns: 80 })));
        assert_eq!(client.next(), Err(Gone));
    }

    #[test]
    fn a_client_that_does_not_read_fills_its_room_and_no_more_is_lost() {
        let (mut client, mut peer) = connected();
        let now = Instant::now();
        let mut frames = 0;
        while client.has_room() {
            client.push(Kind::Stdout, &[7; 1000], now).expect("alive");
            frames += 1;
        }
        assert!(client.stuck_since.is_some());
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; frames * 1005];
            peer.read_exact(&mut read).expect("all of it");
            (read, peer)
        });
        while client.has_output() {
            client.flush(now).expect("alive");
            std::thread::yield_now();
        }
        let (read, _peer) = reader.join().expect("joined");
        assert!(read.chunks(1005).all(|frame| frame[0] == 1 && frame[5..] == [7; 1000]));
    }

    #[test]
    fn a_hang_up_is_seen() {
        let (mut client, peer) = connected();
        drop(peer);
        assert_eq!(client.read(&mut [0; 16]), Err(Gone));
        assert_eq!(client.push(Kind::Exit, &[0; 4], Instant::now()), Err(Gone));
    }
}
