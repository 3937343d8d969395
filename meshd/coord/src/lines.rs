//! The way to other nodes over connections that are kept: one for each node and class, made when it is first asked over, and
//! again when it ended. On tokio alone.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use vdc::Key;
use vdc_coord::wire::FRAME_BYTES_MAX;

use crate::env::{Class, Transport, TransportError};
use crate::frames::Line;

/// How long it may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long nobody tries again after it could not be connected.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Connects to nodes.
pub trait Connect: Clone + Debug + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// Connects to a node that serves frames ([`crate::frames::serve`]).
    fn connect(&self, to: Key, class: Class) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// The connections of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lines<C> {
    connect: C,
    slots: Arc<Mutex<Slots>>,
    /// What moves the bytes of the connections; they end with the last clone.
    moving: Arc<Mutex<JoinSet<()>>>,
}

type Slots = HashMap<(Key, Class), Arc<AsyncMutex<Slot>>>;

#[derive(Debug, Default)]
struct Slot {
    open: Option<Open>,
    failed: Option<(Instant, String)>,
}

#[derive(Clone, Debug)]
struct Open {
    line: Line,
    moving: AbortHandle,
}

impl<C: Connect> Lines<C> {
    #[must_use]
    pub fn new(connect: C) -> Self {
        Self { connect, slots: Arc::default(), moving: Arc::default() }
    }

    /// Hangs up on the nodes that are none of these.
    pub fn keep(&self, nodes: impl Fn(&Key) -> bool) {
        self.slots.lock().retain(|(node, _), _| nodes(node));
    }

    async fn open(&self, to: Key, class: Class) -> Result<Open, String> {
        let slot = Arc::clone(self.slots.lock().entry((to, class)).or_default());
        let mut slot = slot.lock().await;
        if let Some(open) = slot.open.as_ref().filter(|open| !open.line.is_closed()) {
            return Ok(open.clone());
        }
        slot.open = None;
        if let Some((at, why)) = &slot.failed
            && at.elapsed() < CONNECT_PAUSE
        {
            return Err(why.clone());
        }
        let connected = tokio::time::timeout(CONNECT_LIMIT, self.connect.connect(to, class)).await;
        let connected = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten();
        match connected {
            Ok(stream) => {
                let (line, moving) = Line::new(stream, FRAME_BYTES_MAX);
                let mut all = self.moving.lock();
                while all.try_join_next().is_some() {}
                let open = Open { line, moving: all.spawn(moving) };
                drop(all);
                *slot = Slot { open: Some(open.clone()), failed: None };
                Ok(open)
            }
            Err(error) => {
                let why = error.to_string();
                slot.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

impl<C: Connect> Transport for Lines<C> {
    async fn ask(&self, to: Key, class: Class, frame: Bytes, limit: Duration) -> Result<Bytes, TransportError> {
        let deadline = Instant::now() + limit;
        let unreachable = |why: String| TransportError::Unreachable { node: to, why };
        let late = || format!("no answer within {} ms", limit.as_millis());
        let open = match tokio::time::timeout_at(deadline, self.open(to, class)).await {
            Ok(open) => open.map_err(unreachable)?,
            Err(_) => return Err(unreachable(late())),
        };
        let before = open.line.answers();
        match tokio::time::timeout_at(deadline, open.line.ask(frame)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(true)) => Err(TransportError::Broken { node: to, why: "the connection ended".into() }),
            Ok(Err(false)) => Err(unreachable("the connection ended".into())),
            Err(_) => {
                // One that says nothing at all may lead nowhere: a new connection finds out sooner than TCP repeats itself.
                if open.line.answers() == before {
                    open.moving.abort();
                }
                Err(TransportError::Broken { node: to, why: late() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::DuplexStream;

    use super::*;

    const PEER: Key = Key([2; 32]);
    const LIMIT: Duration = Duration::from_millis(500);

    /// Connects to a server in this process, or to nothing that answers, by what the test says.
    #[derive(Clone, Debug, Default)]
    struct Local {
        made: Arc<AtomicUsize>,
        is_off: Arc<Mutex<bool>>,
        is_deaf: Arc<Mutex<bool>>,
        serving: Arc<Mutex<JoinSet<()>>>,
    }

    impl Connect for Local {
        type Stream = DuplexStream;

        async fn connect(&self, _: Key, _: Class) -> io::Result<DuplexStream> {
            self.made.fetch_add(1, Ordering::Relaxed);
            if *self.is_off.lock() {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            let (near, far) = tokio::io::duplex(4096);
            let is_deaf = *self.is_deaf.lock();
            self.serving.lock().spawn(crate::frames::serve(far, FRAME_BYTES_MAX, move |frame| async move {
                if is_deaf {
                    std::future::pending::<()>().await;
                }
                frame
            }));
            Ok(near)
        }
    }

    async fn ask(lines: &Lines<Local>, class: Class) -> Result<Bytes, TransportError> {
        lines.ask(PEER, class, Bytes::from_static(b"question"), LIMIT).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_class_has_one_connection() {
        let local = Local::default();
        let lines = Lines::new(local.clone());
        for _ in 0..3 {
            for class in [Class::Control, Class::Bulk] {
                assert_eq!(ask(&lines, class).await.expect("it answers"), "question");
            }
        }
        assert_eq!(local.made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_ends_is_made_again() {
        let local = Local::default();
        let lines = Lines::new(local.clone());
        ask(&lines, Class::Bulk).await.expect("it answers");
        local.serving.lock().abort_all();
        while let Err(error) = ask(&lines, Class::Bulk).await {
            assert!(matches!(error, TransportError::Broken { .. } | TransportError::Unreachable { .. }), "{error}");
        }
        assert_eq!(local.made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_is_off_is_not_asked_at_once_again() {
        let local = Local::default();
        *local.is_off.lock() = true;
        let lines = Lines::new(local.clone());
        for _ in 0..10 {
            let asked = ask(&lines, Class::Control).await;
            assert!(matches!(asked, Err(TransportError::Unreachable { .. })), "nothing was sent: {asked:?}");
        }
        assert!(local.made.load(Ordering::Relaxed) < 10);
        *local.is_off.lock() = false;
        tokio::time::sleep(CONNECT_PAUSE).await;
        ask(&lines, Class::Control).await.expect("it answers");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_leads_nowhere_is_given_up() {
        let local = Local::default();
        *local.is_deaf.lock() = true;
        let lines = Lines::new(local.clone());
        let asked = ask(&lines, Class::Control).await;
        assert!(matches!(asked, Err(TransportError::Broken { .. })), "it may have arrived: {asked:?}");
        *local.is_deaf.lock() = false;
        while ask(&lines, Class::Control).await.is_err() {}
        assert_eq!(local.made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_no_peer_any_more_is_hung_up_on() {
        let local = Local::default();
        let lines = Lines::new(local.clone());
        ask(&lines, Class::Control).await.expect("it answers");
        lines.keep(|_| false);
        ask(&lines, Class::Control).await.expect("it answers");
        assert_eq!(local.made.load(Ordering::Relaxed), 2);
    }
}
