//! Many questions at a time over one connection: each is a frame with a number, and so is its answer. On tokio alone.
//!
//! Wire form: number (8 bytes), length (4 bytes), both big-endian, and as many bytes. Answers come in any order.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter, ReadHalf, WriteHalf,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// Frames that wait to be written; who asks waits when there are more.
const WAITING_MAX: usize = 64;
/// Questions of one peer that are answered at a time.
const ANSWERING_MAX: usize = 256;
/// A frame that was begun must be there by then.
const FRAME_LIMIT: Duration = Duration::from_secs(20);
/// A peer that asks nothing for so long is hung up on; longer than any answer takes.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// Bytes read and written at once.
const BUFFER_BYTES: usize = 64 << 10;

type Numbered = (u64, Bytes);
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Bytes>>>>;

/// A connection on which frames are sent and answered. Cheap to clone; the connection ends with the last one.
#[derive(Clone, Debug)]
pub struct Line {
    questions: mpsc::Sender<(Bytes, oneshot::Sender<Bytes>)>,
    answers: Arc<AtomicU64>,
}

impl Line {
    /// Takes a connection over; the future moves its bytes.
    pub fn new<S: AsyncRead + AsyncWrite + Send + 'static>(
        stream: S,
        frame_bytes_max: usize,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (questions, asked) = mpsc::channel(WAITING_MAX);
        let answers = Arc::new(AtomicU64::new(0));
        (Self { questions, answers: Arc::clone(&answers) }, ask(stream, asked, frame_bytes_max, answers))
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.questions.is_closed()
    }

    /// How many answers came so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Sends a frame and waits for its answer.
    ///
    /// # Errors
    /// If the connection ended: `true` if the frame may have arrived.
    pub async fn ask(&self, frame: Bytes) -> Result<Bytes, bool> {
        let (reply, answer) = oneshot::channel();
        self.questions.send((frame, reply)).await.map_err(|_| false)?;
        answer.await.map_err(|_| true)
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    mut asked: mpsc::Receiver<(Bytes, oneshot::Sender<Bytes>)>,
    frame_bytes_max: usize,
    count: Arc<AtomicU64>,
) {
    let (read, write) = tokio::io::split(stream);
    let pending = Pending::default();
    let (frames, queue) = mpsc::channel(1);
    let noted = Arc::clone(&pending);
    let questions = async move {
        let mut number = 0;
        while let Some((frame, reply)) = asked.recv().await {
            number += 1;
            {
                let mut pending = noted.lock();
                // Who asked and gave up frees its place.
                pending.retain(|_, reply| !reply.is_closed());
                pending.insert(number, reply);
            }
            if frames.send((number, frame)).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        let mut read = BufReader::with_capacity(BUFFER_BYTES, read);
        while let Ok(Some((number, frame))) = read_frame(&mut read, frame_bytes_max).await {
            count.fetch_add(1, Ordering::Relaxed);
            let reply = pending.lock().remove(&number);
            if let Some(reply) = reply {
                let _ = reply.send(frame); // who asked may have given up
            }
        }
    };
    tokio::select! {
        // cancel-safe: the connection ends with whichever of these does.
        () = questions => {}
        () = answers => {}
        () = write_frames(write, queue) => {}
    }
}

/// Answers the frames of a peer until it hangs up.
pub async fn serve<S, F>(stream: S, frame_bytes_max: usize, answer: impl Fn(Bytes) -> F)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    F: Future<Output = Bytes> + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let (answers, queue) = mpsc::channel(WAITING_MAX);
    let questions = async move {
        let mut read = BufReader::with_capacity(BUFFER_BYTES, read);
        let places = Arc::new(Semaphore::new(ANSWERING_MAX));
        let mut answering = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while answering.try_join_next().is_some() {}
            let asked = tokio::time::timeout(IDLE_LIMIT, read_frame(&mut read, frame_bytes_max)).await;
            let Ok(Ok(Some((number, frame)))) = asked else { return };
            let (answer, answers) = (answer(frame), answers.clone());
            answering.spawn(async move {
                let _place = place;
                let _ = answers.send((number, answer.await)).await; // the peer may have hung up
            });
        }
    };
    tokio::select! {
        // cancel-safe: the connection ends with whichever of these does.
        () = questions => {}
        () = write_frames(write, queue) => {}
    }
}

async fn write_frames<S: AsyncWrite>(write: WriteHalf<S>, mut queue: mpsc::Receiver<Numbered>) {
    let mut write = BufWriter::with_capacity(BUFFER_BYTES, write);
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        let written = async {
            while let Some((number, frame)) = next.take() {
                let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
                write.write_u64(number).await?;
                write.write_u32(length).await?;
                write.write_all(&frame).await?;
                next = queue.try_recv().ok();
            }
            write.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

/// The next frame; none where the peer hung up between two.
async fn read_frame<S: AsyncRead>(
    read: &mut BufReader<ReadHalf<S>>,
    frame_bytes_max: usize,
) -> io::Result<Option<Numbered>> {
    let number = match read.read_u64().await {
        Ok(number) => number,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let rest = async {
        let length = read.read_u32().await? as usize;
        if length > frame_bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        read.read_exact(&mut bytes).await?;
        Ok(Some((number, Bytes::from(bytes))))
    };
    tokio::time::timeout(FRAME_LIMIT, rest).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 1 << 20;

    async fn echo(frame: Bytes) -> Bytes {
        // Short ones last longest: answers overtake each other.
        tokio::time::sleep(Duration::from_millis(20_u64.saturating_sub(frame.len() as u64))).await;
        frame
    }

    fn lines() -> (Line, JoinSet<()>) {
        let (near, far) = tokio::io::duplex(4096);
        let (line, moving) = Line::new(near, BYTES_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(moving);
        tasks.spawn(serve(far, BYTES_MAX, echo));
        (line, tasks)
    }

    #[tokio::test]
    async fn every_question_gets_its_own_answer() {
        let (line, _tasks) = lines();
        let asked = (0..300_usize).map(|length| {
            let line = line.clone();
            async move { line.ask(vec![7; length * 100 % 5_000].into()).await.map(|answer| answer.len()) }
        });
        let answers = futures::future::join_all(asked).await;
        let expected: Vec<_> = (0..300_usize).map(|length| Ok(length * 100 % 5_000)).collect();
        assert_eq!(answers, expected);
    }

    #[tokio::test]
    async fn peer_that_hangs_up_is_told_apart_from_one_that_was_never_asked() {
        let (near, far) = tokio::io::duplex(4096);
        let (line, moving) = Line::new(near, BYTES_MAX);
        let hang_up = async {
            let (mut read, write) = tokio::io::split(far);
            let mut header = [0; 12];
            read.read_exact(&mut header).await.expect("it is sent");
            drop((read, write));
        };
        let asked = line.ask(Bytes::from_static(b"question"));
        let (asked, (), ()) = futures::join!(asked, hang_up, moving);
        assert_eq!(asked, Err(true), "it may have arrived");
        assert!(line.is_closed());
        assert_eq!(line.ask(Bytes::new()).await, Err(false), "it certainly did not");
    }

    #[tokio::test]
    async fn frame_that_is_too_long_ends_the_connection() {
        let (near, far) = tokio::io::duplex(4096);
        let (line, moving) = Line::new(near, BYTES_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(moving);
        tasks.spawn(serve(far, 100, echo));
        assert_eq!(line.ask(vec![1; 100].into()).await.map(|answer| answer.len()), Ok(100));
        assert!(line.ask(vec![1; 101].into()).await.is_err());
    }
}
