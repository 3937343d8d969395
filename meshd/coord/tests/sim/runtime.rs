//! A deterministic executor: virtual time, one thread, seeded choices; tasks belong to nodes, which can be killed.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use coordlab::{Seeded, mix};
use meshd_coord::env::TokioRuntime;
use openraft::AsyncRuntime;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

/// Whose task something is; [`TESTER`] is nobody's.
pub(crate) type NodeNumber = usize;
/// The test itself: it is never killed and has an honest clock.
pub(crate) const TESTER: NodeNumber = usize::MAX;

type TaskId = u64;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

type Body = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    node: NodeNumber,
    /// Taken out while it is polled.
    body: Option<Body>,
}

struct World {
    now_ns: u64,
    seeded: Seeded,
    tasks: BTreeMap<TaskId, Task>,
    next_task: TaskId,
    /// By the time at which they ring, and a number of their own.
    timers: BTreeMap<(u64, u64), (NodeNumber, Waker)>,
    next_timer: u64,
    ready: Arc<Mutex<BTreeSet<TaskId>>>,
    current: NodeNumber,
    /// How far the clocks of nodes are ahead, in nanoseconds.
    ahead: BTreeMap<NodeNumber, u64>,
    /// Everything that was chosen, in one number.
    trace: u64,
    panics: Vec<String>,
}

struct Bell {
    task: TaskId,
    ready: Arc<Mutex<BTreeSet<TaskId>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("unpoisoned").insert(self.task);
    }
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with(|world| act(world.borrow_mut().as_mut().expect("inside of a simulation")))
}

/// Virtual time since the beginning, the same for all.
pub(crate) fn now_ns() -> u64 {
    with(|world| world.now_ns)
}

/// Whose task runs now.
pub(crate) fn current() -> NodeNumber {
    with(|world| world.current)
}

/// A seeded number.
pub(crate) fn random() -> u64 {
    with(|world| world.seeded.next())
}

/// Mixes something that happened into the trace.
pub(crate) fn note(what: u64) {
    with(|world| world.trace = mix(world.trace ^ what));
}

/// What panicked so far.
pub(crate) fn panics() -> Vec<String> {
    with(|world| world.panics.clone())
}

/// Runs a task for a node.
pub(crate) fn spawn_for<T: Send + 'static>(
    node: NodeNumber,
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let slot = Arc::new(Mutex::new(Slot { result: None, waker: None }));
    let told = Arc::clone(&slot);
    let body = async move {
        let result = CatchUnwind(Box::pin(future)).await.map_err(JoinError::Panicked);
        if let Err(JoinError::Panicked(what)) = &result {
            with(|world| world.panics.push(format!("a task of node {node} panicked: {what}")));
        }
        finish(&told, result);
    };
    with(|world| {
        let id = world.next_task;
        world.next_task += 1;
        world.tasks.insert(id, Task { node, body: Some(Box::pin(body)) });
        world.ready.lock().expect("unpoisoned").insert(id);
    });
    JoinHandle { slot, _abandoned: () }
}

/// Ends all tasks of a node, wherever they are.
pub(crate) fn kill(node: NodeNumber) {
    let killed: Vec<Body> = with(|world| {
        let ids: Vec<TaskId> = world.tasks.iter().filter(|(_, task)| task.node == node).map(|(id, _)| *id).collect();
        world.timers.retain(|_, (of, _)| *of != node);
        ids.iter().filter_map(|id| world.tasks.remove(id)?.body).collect()
    });
    // Outside of the world: what is dropped may wake others.
    drop(killed);
}

/// Sets a node's clock ahead. Its timers ring so much sooner.
pub(crate) fn jump_clock(node: NodeNumber, by: Duration) {
    let by = u64::try_from(by.as_nanos()).expect("a short time");
    with(|world| {
        *world.ahead.entry(node).or_default() += by;
        let all = std::mem::take(&mut world.timers);
        for ((at, number), (of, waker)) in all {
            let at = if of == node { at.saturating_sub(by) } else { at };
            world.timers.insert((at, number), (of, waker));
        }
    });
}

/// Runs a future in a world of its own. Its result, and the trace of all that happened.
pub(crate) fn run<T: Send + 'static>(seed: u64, future: impl Future<Output = T> + Send + 'static) -> (T, u64) {
    WORLD.with(|world| {
        *world.borrow_mut() = Some(World {
            now_ns: 1_000_000_000,
            seeded: Seeded::new(seed),
            tasks: BTreeMap::new(),
            next_task: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            ready: Arc::default(),
            current: TESTER,
            ahead: BTreeMap::new(),
            trace: seed,
            panics: vec![],
        });
    });
    let handle = spawn_for(TESTER, future);
    let result = loop {
        if let Some(result) = handle.slot.lock().expect("unpoisoned").result.take() {
            break result;
        }
        step();
    };
    let trace = with(|world| world.trace);
    let world = WORLD.with(|world| {
        // What is left is dropped inside of the world: it may still ask for the time.
        let tasks = std::mem::take(&mut world.borrow_mut().as_mut().expect("set above").tasks);
        drop(tasks);
        world.borrow_mut().take()
    });
    drop(world);
    match result {
        Ok(value) => (value, trace),
        Err(JoinError::Panicked(what)) => panic!("{what}"),
        Err(JoinError::Killed) => panic!("the test was killed"),
    }
}

/// Polls one task, or lets time pass until a timer rings.
fn step() {
    let chosen = with(|world| {
        let mut ready = world.ready.lock().expect("unpoisoned");
        if ready.is_empty() {
            return None;
        }
        let nth = usize::try_from(mix(world.seeded.next()) % ready.len() as u64).expect("small");
        let id = *ready.iter().nth(nth).expect("within");
        ready.remove(&id);
        drop(ready);
        world.trace = mix(world.trace ^ id);
        let Some(task) = world.tasks.get_mut(&id) else { return Some(None) };
        world.current = task.node;
        let body = task.body.take()?;
        Some(Some((id, body, Arc::clone(&world.ready))))
    });
    match chosen {
        Some(Some((id, mut body, ready))) => {
            let waker = Waker::from(Arc::new(Bell { task: id, ready }));
            let polled = body.as_mut().poll(&mut Context::from_waker(&waker));
            let gone = with(|world| {
                world.current = TESTER;
                if polled.is_ready() {
                    world.tasks.remove(&id);
                    return Some(body);
                }
                match world.tasks.get_mut(&id) {
                    Some(task) => {
                        task.body = Some(body);
                        None
                    }
                    None => Some(body), // killed by itself
                }
            });
            drop(gone);
        }
        Some(None) => {}
        None => {
            let ringing = with(|world| {
                let ((at, _), (_, waker)) = world.timers.pop_first().expect("a simulation that stands still for ever");
                world.now_ns = world.now_ns.max(at);
                world.trace = mix(world.trace ^ world.now_ns);
                waker
            });
            ringing.wake();
        }
    }
}

/// A node's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SimInstant(u64);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

impl Add<Duration> for SimInstant {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}
impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}
impl Sub<Duration> for SimInstant {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }
}
impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, by: Duration) {
        *self = *self - by;
    }
}
impl Sub for SimInstant {
    type Output = Duration;
    fn sub(self, other: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(other.0))
    }
}
impl openraft::Instant for SimInstant {
    fn now() -> Self {
        with(|world| Self(world.now_ns + world.ahead.get(&world.current).copied().unwrap_or(0)))
    }
}

/// Waits until a time of the node that made it.
#[derive(Debug)]
pub(crate) struct Sleep {
    deadline: SimInstant,
    timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let timer = self.timer.take();
        let (ready, timer) = with(|world| {
            if let Some(timer) = timer {
                world.timers.remove(&timer);
            }
            let ahead = world.ahead.get(&world.current).copied().unwrap_or(0);
            let at = deadline.0.saturating_sub(ahead);
            if at <= world.now_ns {
                return (true, None);
            }
            let key = (at, world.next_timer);
            world.next_timer += 1;
            let node = world.current;
            world.timers.insert(key, (node, cx.waker().clone()));
            (false, Some(key))
        });
        self.timer = timer;
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            WORLD.with(|world| {
                if let Ok(mut world) = world.try_borrow_mut()
                    && let Some(world) = world.as_mut()
                {
                    world.timers.remove(&timer);
                }
            });
        }
    }
}

/// Waits for a future, but not for ever.
pub(crate) struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

/// Time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("time is up")
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

struct Slot<T> {
    result: Option<Result<T, JoinError>>,
    waker: Option<Waker>,
}

fn finish<T>(slot: &Mutex<Slot<T>>, result: Result<T, JoinError>) {
    let waker = {
        let mut slot = slot.lock().expect("unpoisoned");
        slot.result = Some(result);
        slot.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Waits for a task. Dropping it lets the task go on.
pub(crate) struct JoinHandle<T> {
    slot: Arc<Mutex<Slot<T>>>,
    _abandoned: (),
}

/// Why a task has no result.
#[derive(Clone, Debug)]
pub(crate) enum JoinError {
    Panicked(String),
    Killed,
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Panicked(what) => write!(f, "panicked: {what}"),
            Self::Killed => f.write_str("killed"),
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Once its task is gone nobody else holds the slot.
        let killed = Arc::strong_count(&self.slot) == 1;
        let mut slot = self.slot.lock().expect("unpoisoned");
        if let Some(result) = slot.result.take() {
            return Poll::Ready(result);
        }
        if killed {
            return Poll::Ready(Err(JoinError::Killed));
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct CatchUnwind<T>(Pin<Box<dyn Future<Output = T> + Send>>);

impl<T> Future for CatchUnwind<T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(what) => Poll::Ready(Err(text(what.as_ref()))),
        }
    }
}

fn text(what: &(dyn Any + Send)) -> String {
    what.downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| what.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something".into())
}

/// The runtime that openraft and the driver are given.
#[derive(Debug)]
pub(crate) struct SimRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn_for(current(), future)
    }

    fn sleep(duration: Duration) -> Sleep {
        Self::sleep_until(<SimInstant as openraft::Instant>::now() + duration)
    }

    fn sleep_until(deadline: SimInstant) -> Sleep {
        Sleep { deadline, timer: None }
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: SimInstant, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep_until(deadline) }
    }

    fn is_panic(error: &JoinError) -> bool {
        matches!(error, JoinError::Panicked(_))
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(random())
    }

    fn new(_: usize) -> Self {
        Self
    }

    fn block_on<F, T>(&mut self, _: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("a simulation is run as a whole")
    }
}
