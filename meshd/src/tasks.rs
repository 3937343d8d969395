//! Tasks with a name and an owner.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A group of tasks that ends together. Every task of the daemon lives in one, so none outlives its owner unseen.
#[derive(Debug)]
pub(crate) struct TaskSet {
    token: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl TaskSet {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self { token, tasks: JoinSet::new() }
    }

    /// What says that the set shuts down.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts `future`; it is dropped at its next await when the set shuts down.
    pub(crate) fn spawn(&mut self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = future => {}
            }
            name
        });
    }

    /// Starts a future that watches the set's token by itself, to finish what it is at.
    pub(crate) fn spawn_draining(&mut self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            future.await;
            name
        });
    }

    /// Waits for the next task that ended, by itself or by a panic; pends for ever on an empty set.
    pub(crate) async fn next_ended(&mut self) -> Result<&'static str, tokio::task::JoinError> {
        match self.tasks.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Announces the end, waits up to `deadline`, then aborts what is left and says so.
    pub(crate) async fn shutdown(mut self, deadline: Duration) {
        self.token.cancel();
        let drained = tokio::time::timeout(deadline, async { while self.tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "tasks did not end in time and were aborted");
            self.tasks.shutdown().await;
        }
    }
}
