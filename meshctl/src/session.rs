//! Talking with a program in a container: input, outputs, size, signals, and its end.

use std::io::{self, Read as _};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use vdc_api::frame::{self, BODY_BYTES_MAX, Kind};
use vdc_api::{ErrorBody, TerminalSize};

use crate::client::Pipe;
use crate::failure::{Exit, Failure};
use crate::raw;

/// Ctrl-P and Ctrl-Q, one after the other, leave the program running.
const DETACH: [u8; 2] = [0x10, 0x11];
/// Pieces of input that may wait.
const INPUT_MAX: usize = 16;

/// What of the user's a session takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) input: bool,
    /// Input and size are those of a terminal.
    pub(crate) terminal: bool,
    /// Signals go to the program.
    pub(crate) signals: bool,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The program did, with this status.
    Program(i32),
    /// The user left it.
    Detached,
    /// The other side closed without a word: why is to be asked elsewhere.
    Closed,
}

/// Finds the keys to detach in input that comes in pieces.
#[derive(Clone, Copy, Debug, Default)]
struct DetachKeys {
    first_seen: bool,
}

impl DetachKeys {
    /// What of the piece goes to the program, and whether the user leaves behind it.
    fn pass(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(piece.len() + 1);
        for byte in piece {
            match (std::mem::take(&mut self.first_seen), *byte) {
                (true, byte) if byte == DETACH[1] => return (passed, true),
                (true, byte) if byte == DETACH[0] => {
                    passed.push(DETACH[0]);
                    self.first_seen = true;
                }
                (true, byte) => passed.extend([DETACH[0], byte]),
                (false, byte) if byte == DETACH[0] => self.first_seen = true,
                (false, byte) => passed.push(byte),
            }
        }
        (passed, false)
    }
}

/// Carries bytes both ways until the program ends, the user leaves it, or the connection does.
pub(crate) async fn talk(pipe: Pipe, takes: Takes) -> Result<Ended, Failure> {
    let _raw = if takes.terminal && takes.input { raw::RawMode::begin() } else { None };
    let (mut from, mut to) = tokio::io::split(pipe);
    let mut input = takes.input.then(read_input);
    let mut signals = Signals::catch(takes);
    let mut keys = DetachKeys::default();
    let (mut received, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    let gone =
        |error: io::Error| Failure::new("the connection to meshd broke off").caused_by(&error).exit(Exit::NoDaemon);
    loop {
        tokio::select! {
            // cancel-safe: what was read is in the buffer only when this arm wins.
            count = from.read(&mut piece) => {
                let count = count.map_err(gone)?;
                if count == 0 {
                    return Ok(Ended::Closed);
                }
                received.extend_from_slice(&piece[..count]);
                if let Some(ended) = take_frames(&mut received)? {
                    return Ok(ended);
                }
            }
            // cancel-safe: a queue keeps what was not taken.
            bytes = next_input(&mut input) => {
                let mut out = Vec::new();
                match bytes {
                    Some(bytes) => {
                        let (passed, leaves) = if takes.terminal { keys.pass(&bytes) } else { (bytes, false) };
                        if !passed.is_empty() {
                            frame::encode(Kind::Stdin, &passed, &mut out);
                        }
                        // The end of input may overtake nothing; a program that ended reads no more, which its end tells.
                        let _late = to.write_all(&out).await;
                        if leaves {
                            return Ok(Ended::Detached);
                        }
                    }
                    None => {
                        input = None;
                        frame::encode(Kind::StdinEof, &[], &mut out);
                        let _late = to.write_all(&out).await;
                    }
                }
            }
            // cancel-safe: a signal that comes while nobody waits is kept.
            number = signals.next() => {
                let mut out = Vec::new();
                match number {
                    Caught::Size(size) => {
                        let [a, b] = size.rows.to_be_bytes();
                        let [c, d] = size.columns.to_be_bytes();
                        frame::encode(Kind::Resize, &[a, b, c, d], &mut out);
                    }
                    Caught::Signal(number) if takes.terminal => {
                        return Err(Failure::silent(Exit::Program(128 + number)));
                    }
                    Caught::Signal(number) => frame::encode(Kind::Signal, &[number], &mut out),
                }
                let _late = to.write_all(&out).await;
            }
        }
    }
}

/// Writes what whole frames say, and tells when that was the last.
fn take_frames(received: &mut Vec<u8>) -> Result<Option<Ended>, Failure> {
    let mut at = 0;
    let mut ended = None;
    while ended.is_none() {
        let Some(frame) = decode(&received[at..])? else { break };
        at += frame.length;
        match frame.kind {
            Kind::Stdout => write(&mut io::stdout().lock(), frame.body)?,
            Kind::Stderr => write(&mut io::stderr().lock(), frame.body)?,
            Kind::Exit => {
                let code = frame.body.try_into().map(i32::from_be_bytes).unwrap_or(-1);
                ended = Some(Ended::Program(code));
            }
            Kind::Error => return Err(failure(frame.body)),
            Kind::Stdin | Kind::Resize | Kind::Signal | Kind::StdinEof | Kind::Ping => {}
        }
    }
    received.drain(..at);
    Ok(ended)
}

/// The first whole frame of what was received.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<frame::Frame<'_>>, Failure> {
    frame::decode(bytes).map_err(|_| {
        Failure::new("meshd sent something that is no frame of a stream")
            .hint("meshctl and meshd should be of the same release: compare them with `meshctl version`")
    })
}

/// What an error frame says: the API's form, or plain words.
pub(crate) fn failure(body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.into(),
        Err(_) => Failure::new(crate::show::harmless_text(&String::from_utf8_lossy(body))),
    }
}

fn write(to: &mut impl io::Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Done)),
        Err(error) => Err(Failure::new("cannot write what the program said").caused_by(&error)),
    }
}

/// Reads standard input on a thread of its own: such a read cannot be given up, and must not keep the process.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_MAX);
    let body = move || {
        let mut buffer = vec![0; BODY_BYTES_MAX];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    };
    // Without a thread there is no input, which the program sees as its end.
    let _started = std::thread::Builder::new().name("input".to_owned()).spawn(body);
    receiver
}

async fn next_input(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

enum Caught {
    Size(TerminalSize),
    Signal(u8),
}

/// Signals that go to the program, by number (signal(7)), and changes of the terminal's size.
struct Signals {
    resized: Option<Signal>,
    caught: Vec<(u8, Signal)>,
}

impl Signals {
    fn catch(takes: Takes) -> Self {
        let resized = takes.terminal.then(|| signal(SignalKind::window_change()).ok()).flatten();
        let numbers: &[u8] = match (takes.terminal, takes.signals) {
            // Keys are bytes there; the rest must not leave the terminal raw.
            (true, _) => &[1, 15],
            (false, true) => &[1, 2, 3, 10, 12, 15],
            (false, false) => &[],
        };
        let caught = numbers.iter().filter_map(|n| Some((*n, signal(SignalKind::from_raw(i32::from(*n))).ok()?)));
        Self { resized, caught: caught.collect() }
    }

    async fn next(&mut self) -> Caught {
        std::future::poll_fn(|context| {
            if let Some(resized) = &mut self.resized
                && resized.poll_recv(context).is_ready()
                && let Some(size) = raw::size()
            {
                return std::task::Poll::Ready(Caught::Size(size));
            }
            for (number, signal) in &mut self.caught {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(Caught::Signal(*number));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_detach_are_found_over_pieces_and_nothing_else_is_lost() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pass(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.pass(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.pass(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.pass(b"\x11rest"), (vec![], true));
        assert_eq!(DetachKeys::default().pass(b"\x11x"), (b"\x11x".to_vec(), false));
    }

    #[test]
    fn frames_are_taken_whole_and_the_last_one_ends_it() {
        let mut bytes = Vec::new();
        frame::encode(Kind::Ping, &[], &mut bytes);
        frame::encode(Kind::Exit, &7_i32.to_be_bytes(), &mut bytes);
        for cut in 0..bytes.len() {
            let mut part = bytes[..cut].to_vec();
            assert_eq!(take_frames(&mut part).expect("frames"), None, "{cut}");
        }
        assert_eq!(take_frames(&mut bytes.clone()).expect("frames"), Some(Ended::Program(7)));
        assert!(take_frames(&mut vec![99, 0, 0, 0, 0]).is_err(), "no such kind");
        let mut error = Vec::new();
        frame::encode(Kind::Error, b"no such path\x1b[2J", &mut error);
        let failure = take_frames(&mut error).expect_err("an error");
        assert!(failure.message.starts_with("no such path") && !failure.message.contains('\u{1b}'));
    }
}
