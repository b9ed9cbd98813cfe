//! Claims rollouts and calls a function for each.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claims::Claims;
use crate::client::Client;
use crate::error::Error;
use crate::execution::{AgentFuture, Execution, Running, Stopped};
use crate::exporter::{MAX_SHUTDOWN, SpanExporter};
use crate::failure::Failure;
use crate::finishes::{Finishes, PAUSE};
use crate::heartbeats::{Heartbeats, PublishNumber};
use crate::ids::new_request_id;
use crate::proto::{Rollout, RolloutMode};
use crate::task::{Agent, Task};
use crate::work::Work;

const HEARTBEAT_PERIOD: Duration = Duration::from_secs(10);
/// Maximum time to wait for cancelled functions when the runner stops.
const GRACE: Duration = Duration::from_secs(5);
/// Maximum number of characters of a worker id.
const MAX_WORKER_ID: usize = 256;

/// Claims rollouts and calls a function for each, several at a time.
///
/// The function takes a [`Task`]. If it returns a reward or `None`, the attempt has succeeded. An error or a
/// panic is a failure with its type and message. It is retried according to the rollout's config, unless it
/// is [`not_retryable`](Failure::not_retryable). When the attempt is cancelled or superseded,
/// [`Task::cancellation`] is cancelled; then the attempt is not reported as succeeded, whatever the function
/// returns.
///
/// Heartbeats and spans are sent independently of the functions, even if these block the runtime. Spans are
/// stored before an outcome is reported. While the server is down, the runner continues, keeps spans for up
/// to 10 minutes, and reports when the server is back; no claim is lost.
pub struct Runner {
    client: Client,
    agent: Arc<Agent>,
    worker_id: String,
    concurrency: usize,
    modes: Vec<i32>,
    queues: Vec<String>,
    publish_number: Option<PublishNumber>,
    max_rollouts: Option<usize>,
    heartbeat_period: Duration,
    handle: RunnerHandle,
}

/// Stops a runner.
#[derive(Clone, Debug, Default)]
pub struct RunnerHandle {
    stopping: CancellationToken,
    hurried: CancellationToken,
    running: Arc<Running>,
}

impl RunnerHandle {
    /// Lets the running functions finish and claims no more. It does not wait: [`Runner::run`] returns when
    /// all is done.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Cancels the running functions and claims no more. Functions that do not return are abandoned after 5
    /// seconds.
    pub fn cancel(&self) {
        self.stopping.cancel();
        self.hurried.cancel();
        self.running.all().iter().for_each(|execution| execution.stop(Stopped::Runner));
    }
}

impl Runner {
    /// Creates a runner that works on one rollout at a time, without end.
    pub fn new<I, F, O, R>(client: &Client, agent: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        F: Fn(Task<I>) -> O + Send + Sync + 'static,
        O: Future<Output = Result<R, Failure>> + Send + 'static,
        R: Into<Option<f64>>,
    {
        let agent = Arc::new(agent);
        let erased = move |task: Task<()>| -> AgentFuture {
            let agent = agent.clone();
            Box::pin(async move {
                // An input that does not fit will not fit in another attempt either.
                let input = task.rollout.input().map_err(|error| Failure::from(error).not_retryable())?;
                agent(task.with_input(input)).await.map(Into::into)
            })
        };
        Self {
            client: client.clone(),
            agent: Arc::new(erased),
            worker_id: new_worker_id(),
            concurrency: 1,
            modes: Vec::new(),
            queues: Vec::new(),
            publish_number: None,
            max_rollouts: None,
            heartbeat_period: HEARTBEAT_PERIOD,
            handle: RunnerHandle::default(),
        }
    }

    /// Sets the id of the worker. Default: generated from host name, process id and random digits.
    pub fn worker_id(mut self, worker_id: impl Into<String>) -> Self {
        self.worker_id = worker_id.into();
        self
    }

    /// Sets the maximum number of rollouts at a time, at least 1.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// Claims only rollouts with these modes; unspecified matches those without a mode. Default: any.
    pub fn modes(mut self, modes: impl IntoIterator<Item = RolloutMode>) -> Self {
        self.modes = modes.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the task queues to claim from; `""` is the default queue. Default: the default queue only.
    pub fn queues(mut self, queues: impl IntoIterator<Item: Into<String>>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the number of rollouts after which the runner ends. Default: no limit.
    pub fn max_rollouts(mut self, count: usize) -> Self {
        self.max_rollouts = Some(count);
        self
    }

    /// Sets the maximum time between heartbeats, which is reduced to a third of the shortest unresponsive
    /// timeout. Default: 10 seconds.
    pub fn heartbeat_period(mut self, period: Duration) -> Self {
        self.heartbeat_period = period;
        self
    }

    /// Sets what returns the publish number that heartbeats report, such as that of the weights which the
    /// worker's model has loaded; `None`: unchanged. It is called by the thread of the heartbeats. Default: that
    /// of the resources which the function was called with last.
    pub fn publish_number(mut self, number: impl Fn() -> Option<i64> + Send + Sync + 'static) -> Self {
        self.publish_number = Some(Arc::new(number));
        self
    }

    /// Returns a handle that stops the runner.
    pub fn handle(&self) -> RunnerHandle {
        self.handle.clone()
    }

    /// Works until it is stopped or the rollouts are done. Dropping the future abandons the running
    /// functions: they are aborted and nothing is reported.
    ///
    /// # Errors
    ///
    /// For errors that are not retryable, after the running functions have finished.
    pub async fn run(self) -> Result<(), Error> {
        let RunnerHandle { running, .. } = &self.handle;
        let exporter = SpanExporter::for_runner(&self.client, Some(running.clone()));
        let used = Arc::new(AtomicI64::new(0));
        let heartbeats = Arc::new(self.heartbeats(&exporter, used.clone()));
        let dropped = CancellationToken::new();
        let guard = dropped.clone().drop_guard();
        let beats = heartbeats.clone();
        let finishes = Arc::new(Finishes::new(&self.client, PAUSE, move || beats.hurry()));
        let (until, beats, watch) = (dropped.clone(), heartbeats.clone(), finishes.clone());
        self.client.background().spawn(async move {
            until.run_until_cancelled(async { tokio::join!(beats.run(), watch.run()) }).await;
        });
        let work = Arc::new(Work {
            client: self.client.clone(),
            worker_id: self.worker_id.clone(),
            agent: self.agent.clone(),
            exporter: exporter.clone(),
            hurried: self.handle.hurried.clone(),
            finishes,
            kept: Default::default(),
            publish_number: used,
            without_rewards: Default::default(),
        });
        let crew = Crew { running: running.clone(), heartbeats, work, tracker: TaskTracker::new(), dropped };
        let ended = self.claim_and_start(&crew).await;
        self.finish(&crew.tracker).await;
        drop(guard);
        exporter.shutdown(MAX_SHUTDOWN).await; // it says itself what is lost
        ended
    }

    /// Runs like [`run`](Self::run) with handlers for SIGINT and SIGTERM: the first signal lets the running
    /// functions finish and claims no more, the second cancels them. (On systems without these signals:
    /// Ctrl-C.)
    pub async fn run_with_signals(self) -> Result<(), Error> {
        let handle = self.handle();
        let mut signals = Signals::new().map_err(|error| Error::argument(format!("signals: {error}")))?;
        let running = self.run();
        tokio::pin!(running);
        loop {
            tokio::select! {
                ended = &mut running => return ended,
                () = signals.next() => {
                    if handle.stopping.is_cancelled() { handle.cancel() } else { handle.stop() }
                }
            }
        }
    }

    /// `used`: publish number of the resources that the function was called with last.
    fn heartbeats(&self, exporter: &SpanExporter, used: Arc<AtomicI64>) -> Heartbeats {
        let (running, exporter) = (self.handle.running.clone(), exporter.clone());
        let concurrency = self.concurrency;
        let stats = move || {
            serde_json::json!({
                "running": running.all().len(),
                "finished": running.finished(),
                "concurrency": concurrency,
                "dropped_spans": exporter.dropped(),
            })
        };
        Heartbeats {
            client: self.client.clone(),
            worker_id: self.worker_id.clone(),
            period: self.heartbeat_period,
            running: self.handle.running.clone(),
            stats: Box::new(stats),
            publish_number: self
                .publish_number
                .clone()
                .unwrap_or_else(|| Arc::new(move || Some(used.load(Ordering::Relaxed)))),
            changed: Default::default(),
            hurried: Default::default(),
            attempts: Default::default(),
        }
    }

    /// Claims as many rollouts as there are free slots, until the runner stops.
    async fn claim_and_start(&self, crew: &Crew) -> Result<(), Error> {
        let (client, worker_id) = (self.client.clone(), self.worker_id.clone());
        let (modes, queues) = (self.modes.clone(), self.queues.clone());
        let claims = Claims { client, worker_id, modes, queues };
        let stopping = &self.handle.stopping;
        let slots = Arc::new(Semaphore::new(self.concurrency));
        let mut left = self.max_rollouts;
        while left != Some(0) {
            let taken = stopping.run_until_cancelled(take_slots(&slots, left)).await;
            let Some(mut taken) = taken else { break };
            for rollout in claims.claim(stopping, taken.num_permits()).await? {
                left = left.map(|left| left.saturating_sub(1));
                let place = taken.split(1);
                crew.start(rollout, place, &self.handle.hurried);
            }
            if stopping.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the running functions; after they are cancelled, for at most the grace period.
    async fn finish(&self, tracker: &TaskTracker) {
        tracker.close();
        tokio::select! {
            () = tracker.wait() => return,
            () = self.handle.hurried.cancelled() => {}
        }
        if timeout(GRACE, tracker.wait()).await.is_ok() {
            return;
        }
        for execution in self.handle.running.all() {
            tracing::warn!(attempt = ?execution.key, "the function did not return after its cancellation; abandoned");
            execution.abandoned.cancel();
        }
        tracker.wait().await;
    }
}

/// Waits for a free slot and takes all free ones, up to `limit`.
async fn take_slots(slots: &Arc<Semaphore>, limit: Option<usize>) -> OwnedSemaphorePermit {
    let mut taken = slots.clone().acquire_owned().await.expect("never closed");
    while limit.is_none_or(|limit| taken.num_permits() < limit)
        && let Ok(another) = slots.clone().try_acquire_owned()
    {
        taken.merge(another);
    }
    taken
}

/// Runs the work on claims.
struct Crew {
    running: Arc<Running>,
    heartbeats: Arc<Heartbeats>,
    work: Arc<Work>,
    tracker: TaskTracker,
    /// Cancelled when the runner's future is dropped.
    dropped: CancellationToken,
}

impl Crew {
    /// Works on a claim in a separate task.
    fn start(&self, rollout: Rollout, place: Option<OwnedSemaphorePermit>, hurried: &CancellationToken) {
        let execution = Arc::new(Execution::new(rollout));
        self.running.add(execution.clone());
        if hurried.is_cancelled() {
            execution.stop(Stopped::Runner);
        }
        self.heartbeats.add(execution.key.clone(), &execution.rollout);
        self.work.finishes.add(execution.key.clone());
        let (running, heartbeats) = (self.running.clone(), self.heartbeats.clone());
        let (work, dropped) = (self.work.clone(), self.dropped.clone());
        self.tracker.spawn(async move {
            dropped.run_until_cancelled(work.run(&execution)).await;
            heartbeats.remove(&execution.key);
            running.remove(&execution.key);
            drop(place);
        });
    }
}

fn new_worker_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "worker" } else { host.trim() };
    let host: String = host.chars().take(MAX_WORKER_ID / 2).collect();
    format!("{host}-{}-{}", std::process::id(), &new_request_id()[..6])
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
