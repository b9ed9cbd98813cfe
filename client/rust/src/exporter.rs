//! The span exporter for the OpenTelemetry SDK.

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
/// The server's limit for one span.
const MAX_SPAN_BYTES: usize = 4 * MIB;
/// Default maximum duration of a shutdown.
pub(crate) const MAX_SHUTDOWN: Duration = Duration::from_secs(5);

/// Streams spans to a store, each to its attempt, without blocking the program. It is an exporter of the
/// OpenTelemetry SDK; use it with `with_simple_exporter`, because it has its own buffer.
///
/// A thread sends the spans, keeps them until the server has stored them, and sends them again after a broken
/// connection; the server counts repeats once. No span is lost while a server restarts. Spans beyond the
/// buffer, and spans that the server rejects, are dropped, counted and logged.
///
/// The attempt of a span is named by the attributes `agentlightning.rollout_id` and
/// `agentlightning.attempt_id` of the span, else of its resource, else by [`attempt`](Self::attempt). Clones
/// share one buffer. When the last clone is dropped, the remaining spans are still sent, for at most 5
/// seconds and unless the program ends before; [`shutdown`](Self::shutdown) waits for that.
#[derive(Clone, Debug)]
pub struct SpanExporter {
    pub(crate) shared: Arc<Shared>,
    encoder: Encoder,
    _last: Arc<Last>,
}

/// State shared by the exporter and its sender.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    /// The attempts to notify of stop requests.
    pub(crate) running: Option<Arc<Running>>,
    pub(crate) wake: Notify,
    /// Ends the sending, even if spans remain.
    pub(crate) hurry: CancellationToken,
    /// Number of spans that are stored or dropped.
    pub(crate) settled: watch::Sender<u64>,
    max_bytes: AtomicUsize,
    losses: Losses,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) queue: VecDeque<Item>,
    /// Bytes in the queue and in transit.
    pub(crate) bytes: usize,
    pub(crate) added: u64,
    /// Send without delay until this number of spans is settled.
    pub(crate) hurry_to: u64,
    /// Whether there is a sender.
    started: bool,
    pub(crate) shut: bool,
}

impl SpanExporter {
    /// Creates an exporter that uses a client.
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

    /// Sets the attempt of spans that do not name one. Other clones of this exporter may have another one.
    pub fn attempt(mut self, rollout_id: impl Into<String>, attempt_id: impl Into<String>) -> Self {
        self.encoder.set_fallback(AttemptKey::new(rollout_id, attempt_id));
        self
    }

    /// Sets the maximum size of spans that are not stored yet; further ones are dropped. Default: 64 MiB.
    pub fn max_buffer_bytes(self, bytes: usize) -> Self {
        self.shared.max_bytes.store(bytes, Ordering::Relaxed);
        self
    }

    /// Returns the number of spans lost so far: beyond the buffer, too large, rejected by the server, without
    /// an attempt, or not stored before the shutdown.
    pub fn dropped(&self) -> u64 {
        self.shared.losses.total()
    }

    /// Waits until all spans exported so far are stored or dropped. There is no limit except the caller's,
    /// with [`tokio::time::timeout`].
    pub async fn flush(&self) {
        self.shared.flush().await;
    }

    /// Sends the remaining spans and stops, within at most `timeout`. Returns the number of spans that were
    /// lost.
    pub async fn shutdown(&self, timeout: Duration) -> u64 {
        self.shared.clone().shut_down(timeout).await
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
            shared.drop_spans(1, "no rollout id and attempt id", format_args!("span {name}{limit}"));
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
    /// Queues spans without waiting for the network.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        batch.into_iter().for_each(|span| self.add(span));
        if self.shared.state().shut { Err(OTelSdkError::AlreadyShutdown) } else { Ok(()) }
    }

    /// Sends the remaining spans and stops, blocking.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        match self.shared.block(self.shared.clone().shut_down(timeout)) {
            Some(0) => Ok(()),
            _ => Err(OTelSdkError::Timeout(timeout)),
        }
    }

    /// Waits until all spans are stored or dropped, blocking, for at most 5 seconds.
    fn force_flush(&self) -> OTelSdkResult {
        let shared = self.shared.clone();
        let flushed = async move { timeout(MAX_SHUTDOWN, shared.flush()).await.is_ok() };
        match self.shared.block(flushed) {
            Some(true) => Ok(()),
            _ => Err(OTelSdkError::Timeout(MAX_SHUTDOWN)),
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
            // Created here, so that the end is reported even if the background thread has ended.
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

    async fn shut_down(self: Arc<Self>, limit: Duration) -> u64 {
        self.state().shut = true;
        let before = self.losses.total();
        if timeout(limit, self.flush()).await.is_err() {
            self.hurry.cancel();
            self.flush().await; // the remaining spans are dropped
        }
        self.losses.total() - before
    }

    /// Runs a future on the background thread and blocks until it is done; `None` if the thread has ended.
    fn block<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (send, receive) = mpsc::channel();
        self.client.background().spawn(async move {
            let _ = send.send(work.await);
        });
        receive.recv().ok()
    }

    /// Counts and logs lost spans.
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

/// Lives as long as there is a clone of the exporter.
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
                sleep(MAX_SHUTDOWN).await;
                hurry.cancel();
            });
        }
    }
}
