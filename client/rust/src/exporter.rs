//! The exporter of spans for OpenTelemetry's SDK.

use std::collections::VecDeque;
use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::execution::Running;
use crate::losses::Losses;
use crate::outbox::{AttemptKey, Encoder, Item};

const MIB: usize = 1 << 20;
const DEFAULT_BUFFER_BYTES: usize = 64 * MIB;
/// The server's limit of one span.
const MAX_SPAN_BYTES: usize = 4 * MIB;
/// How long a shutdown may hold a program up if nobody says.
pub(crate) const LONGEST_SHUTDOWN: Duration = Duration::from_secs(5);

/// Streams spans to a store, each to the attempt that it belongs to, and holds nobody up. It is an exporter of
/// OpenTelemetry's SDK; use it with `with_simple_exporter`, for it has a buffer of its own.
///
/// A thread sends the spans, keeps them until the server says that they are stored, and sends them again after a
/// break: stored twice they count once. So nothing is lost while a server restarts. Spans beyond the buffer, and such
/// as the server refuses, are dropped, counted and warned about.
///
/// Which attempt: the attributes `agentlightning.rollout_id` and `agentlightning.attempt_id` of the span, else those
/// of its resource, else what [`attempt`](Self::attempt) says. Clones share one buffer. When the last one is dropped,
/// what is left is still sent, for 5 seconds at most and unless the program ends before:
/// [`shutdown`](Self::shutdown) waits for it.
#[derive(Clone, Debug)]
pub struct SpanExporter {
    pub(crate) shared: Arc<Shared>,
    encoder: Encoder,
    _last: Arc<Last>,
}

/// What the exporter and its sender know.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    /// Attempts to tell what the server says of them.
    pub(crate) running: Option<Arc<Running>>,
    pub(crate) wake: Notify,
    /// Ends the sending, whatever is left.
    pub(crate) hurry: CancellationToken,
    /// Number of spans that are stored, or given up.
    pub(crate) settled: watch::Sender<u64>,
    max_bytes: AtomicUsize,
    losses: Losses,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) queue: VecDeque<Item>,
    /// In the queue and on their way.
    pub(crate) bytes: usize,
    pub(crate) added: u64,
    /// Send without delay until so many are settled.
    pub(crate) hurry_to: u64,
    /// There is a sender.
    started: bool,
    pub(crate) shut: bool,
}

impl SpanExporter {
    /// An exporter over a client.
    pub fn new(client: &Client) -> Self {
        Self::for_runner(client, None)
    }

    pub(crate) fn for_runner(client: &Client, running: Option<Arc<Running>>) -> Self {
        let shared = Arc::new(Shared {
            client: client.clone(),
            running,
            wake: Notify::new(),
            hurry: CancellationToken::new(),
            settled: watch::Sender::new(0),
            max_bytes: AtomicUsize::new(DEFAULT_BUFFER_BYTES),
            losses: Losses::default(),
            state: Mutex::default(),
        });
        let _last = Arc::new(Last(shared.clone()));
        Self { shared, encoder: Encoder::default(), _last }
    }

    /// Says where spans belong that do not say themselves. Other clones of this exporter may say something else.
    pub fn attempt(mut self, rollout_id: impl Into<String>, attempt_id: impl Into<String>) -> Self {
        self.encoder.set_fallback(AttemptKey::new(rollout_id, attempt_id));
        self
    }

    /// Bounds the spans that are not stored yet; new ones beyond it are dropped. 64 MiB by default.
    pub fn max_buffer_bytes(self, bytes: usize) -> Self {
        self.shared.max_bytes.store(bytes, Ordering::Relaxed);
        self
    }

    /// Number of spans lost so far: beyond the buffer, too large, refused by the server, without an attempt, or not
    /// stored at the shutdown.
    pub fn dropped(&self) -> u64 {
        self.shared.losses.total()
    }

    /// Waits until all that was exported so far is stored, or given up. There is no limit but the caller's, by
    /// [`tokio::time::timeout`].
    pub async fn flush(&self) {
        self.shared.flush().await;
    }

    /// Sends what is left and ends, for `longest` at most. Returns the number of spans that were lost by it.
    pub async fn shutdown(&self, longest: Duration) -> u64 {
        self.shared.clone().shut_down(longest).await
    }

    /// Queues a span.
    pub(crate) fn add(&self, span: SpanData) {
        let item = self.encoder.encode(span);
        let (shared, name) = (&self.shared, &item.span.name);
        if !item.is_filed() {
            let limit = match item.span.dropped_attributes_count {
                0 => "",
                _ => {
                    ", whose provider dropped attributes over its limit: set the ids on the resource, or first"
                }
            };
            shared.drop_spans(1, "no rollout and attempt named", format_args!("span {name}{limit}"));
        } else if item.size > MAX_SPAN_BYTES {
            let detail = format_args!("span {name} of {} bytes, {MAX_SPAN_BYTES} at most", item.size);
            shared.drop_spans(1, "too large", detail);
        } else {
            shared.clone().add(item);
        }
    }

    pub(crate) fn file_under(&mut self, resource: &Resource) {
        self.encoder.set_resource(resource);
    }
}

impl opentelemetry_sdk::trace::SpanExporter for SpanExporter {
    /// Queues spans; never waits for the network.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        batch.into_iter().for_each(|span| self.add(span));
        if self.shared.state().shut { Err(OTelSdkError::AlreadyShutdown) } else { Ok(()) }
    }

    /// Sends what is left and ends, blocking.
    fn shutdown_with_timeout(&self, longest: Duration) -> OTelSdkResult {
        match self.shared.block(self.shared.clone().shut_down(longest)) {
            Some(0) => Ok(()),
            _ => Err(OTelSdkError::Timeout(longest)),
        }
    }

    /// Waits until all is stored or given up, blocking, for 5 seconds at most.
    fn force_flush(&self) -> OTelSdkResult {
        let shared = self.shared.clone();
        let flushed = async move { timeout(LONGEST_SHUTDOWN, shared.flush()).await.is_ok() };
        match self.shared.block(flushed) {
            Some(true) => Ok(()),
            _ => Err(OTelSdkError::Timeout(LONGEST_SHUTDOWN)),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.file_under(resource);
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic inside")
    }

    fn add(self: Arc<Self>, item: Item) {
        let mut state = self.state();
        let max = self.max_bytes.load(Ordering::Relaxed);
        let lost = match () {
            () if state.shut => Some("exporter shut down"),
            () if state.bytes + item.size > max => Some("buffer full"),
            () => None,
        };
        if let Some(why) = lost {
            drop(state);
            return self.drop_spans(1, why, format_args!("{max} bytes at most"));
        }
        state.bytes += item.size;
        state.added += 1;
        state.queue.push_back(item);
        let start = !std::mem::replace(&mut state.started, true);
        drop(state);
        self.wake.notify_one();
        if start {
            // Made here: it tells of the end even where nothing runs any more.
            let sending = Sending(self.clone());
            self.client.background().spawn(async move { sending.run().await });
        }
    }

    async fn flush(&self) {
        self.losses.summarize(Instant::now(), false);
        let target = {
            let mut state = self.state();
            state.hurry_to = state.hurry_to.max(state.added);
            state.added
        };
        self.wake.notify_one();
        let _ = self.settled.subscribe().wait_for(|&settled| settled >= target).await;
    }

    async fn shut_down(self: Arc<Self>, longest: Duration) -> u64 {
        self.state().shut = true;
        let before = self.losses.total();
        if timeout(longest, self.flush()).await.is_err() {
            self.hurry.cancel();
            self.flush().await; // what is left is given up
        }
        self.losses.total() - before
    }

    /// Runs something in the background and waits for it, blocking; `None` if nothing runs there any more.
    fn block<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (send, receive) = mpsc::channel();
        self.client.background().spawn(async move {
            let _ = send.send(work.await);
        });
        receive.recv().ok()
    }

    /// Counts lost spans, and says so.
    pub(crate) fn drop_spans(&self, count: usize, why: &'static str, detail: impl Display) {
        self.losses.add(count as u64, why, detail, Instant::now());
    }
}

/// Lives as long as the sender.
struct Sending(Arc<Shared>);

impl Sending {
    async fn run(&self) {
        self.0.send_all().await;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.shut = true;
        state.queue.clear();
        let added = state.added;
        drop(state);
        let left = added - *self.0.settled.borrow();
        if left > 0 {
            self.0.drop_spans(left as usize, "not stored at the end", "");
        }
        self.0.losses.summarize(Instant::now(), true);
        self.0.settled.send_replace(added);
    }
}

/// Lives as long as there is somebody to export.
#[derive(Debug)]
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.shut = true;
        let started = state.started;
        drop(state);
        self.0.wake.notify_one();
        if started {
            let hurry = self.0.hurry.clone();
            self.0.client.background().spawn(async move {
                sleep(LONGEST_SHUTDOWN).await;
                hurry.cancel();
            });
        }
    }
}
