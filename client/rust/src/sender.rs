//! Sends the spans of an exporter.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Request};

use crate::backoff::Backoff;
use crate::client::within;
use crate::error::Error;
use crate::exporter::Shared;
use crate::outbox::{BATCH_BYTES, Item, into_messages, split};
use crate::proto::{ErrorReason, IngestResult, IngestSpansRequest, SpanBatch};

/// Maximum time that a span waits to be sent together with others.
const LINGER: Duration = Duration::from_millis(200);
/// A stream is closed, so that the server acknowledges it, after this number of bytes.
const STREAM_BYTES: usize = 16 << 20;
/// A stream without a response is sent again after this time.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Number of internal errors after which spans are dropped: the server cannot process them.
const MAX_DEFECTS: u32 = 5;

impl Shared {
    /// Sends spans until the exporter is shut down, or its time is over.
    pub(crate) async fn send_all(&self) {
        self.hurry.run_until_cancelled(self.deliver_all()).await;
    }

    async fn deliver_all(&self) {
        while let Some(items) = self.take().await {
            let count = items.len() as u64;
            let size: usize = items.iter().map(|item| item.size).sum();
            self.deliver(into_messages(items)).await;
            self.state().bytes -= size;
            self.settled.send_modify(|settled| *settled += count);
        }
    }

    /// Waits for spans and returns those for one stream; `None` at the end.
    async fn take(&self) -> Option<Vec<Item>> {
        let mut due = None;
        loop {
            {
                let mut state = self.state();
                let urgent = state.shut
                    || *self.settled.borrow() < state.hurry_to
                    || state.bytes >= BATCH_BYTES
                    || due.is_some_and(|due| due <= Instant::now());
                match state.queue.len() {
                    0 if state.shut => return None,
                    0 => due = None,
                    _ if urgent => return Some(cut(&mut state.queue)),
                    _ => due = due.or_else(|| Some(Instant::now() + LINGER)),
                }
            }
            match due {
                None => self.wake.notified().await,
                Some(due) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(due) => {}
                },
            }
        }
    }

    /// Sends messages until each span is stored or rejected.
    async fn deliver(&self, mut messages: Vec<Arc<SpanBatch>>) {
        while !messages.is_empty() {
            match self.send(&messages).await {
                Ok(result) => {
                    if let Some(running) = &self.running {
                        result.stops.iter().for_each(|stop| running.stop(stop));
                    }
                    messages = self.sort_out(messages, &result);
                }
                Err(error) => {
                    let count = messages.iter().map(|message| message.spans.len()).sum();
                    return self.drop_spans(count, "rejected", error);
                }
            }
        }
    }

    /// Sends messages over one stream until it is answered. Fails for errors that are not retryable.
    async fn send(&self, messages: &[Arc<SpanBatch>]) -> Result<IngestResult, Error> {
        let mut pauses = Backoff::new(MAX_PAUSE);
        let mut defects = 0;
        loop {
            let error = match self.try_once(messages).await {
                Ok(result) => return Ok(result),
                Err(error) => self.client.explain(error),
            };
            let defect = error.code() == Some(Code::Internal);
            defects += u32::from(defect);
            if !error.is_retryable() && (!defect || defects >= MAX_DEFECTS) {
                return Err(error);
            }
            tracing::debug!(%error, "spans not stored yet");
            pauses.pause(&error).await;
        }
    }

    async fn try_once(&self, messages: &[Arc<SpanBatch>]) -> Result<IngestResult, Error> {
        let to_request = |batch: Arc<SpanBatch>| IngestSpansRequest { batch: Some((*batch).clone()) };
        let mut request = Request::new(stream::iter(messages.to_vec()).map(to_request));
        request.set_timeout(STREAM_TIMEOUT);
        let mut stub = self.client.stub();
        let asked = async { Ok(stub.ingest_spans(request).await?.into_inner()) };
        Ok(within(Some(STREAM_TIMEOUT), asked).await?.result.unwrap_or_default())
    }

    /// Returns the messages to send again: an invalid span fails its whole message, although the others are
    /// valid.
    fn sort_out(&self, messages: Vec<Arc<SpanBatch>>, result: &IngestResult) -> Vec<Arc<SpanBatch>> {
        let mut again = Vec::new();
        let mut told = 0;
        let mut last = 0;
        for rejection in &result.rejections {
            last = usize::try_from(rejection.message_index).unwrap_or(usize::MAX);
            let Some(message) = messages.get(last) else { continue };
            let all = message.spans.len();
            // If only some are rejected, these are single spans, for example with ids that exist. The others
            // are stored.
            let refused = match usize::try_from(rejection.span_count) {
                Ok(count @ 1..) => count.min(all),
                _ => all,
            };
            told += refused as i64;
            if all == 1 || refused < all || is_about_attempt(rejection.reason()) {
                self.drop_spans(refused, "rejected", &rejection.message);
            } else {
                again.extend(split(message));
            }
        }
        if told < result.rejected_count && !result.rejections.is_empty() {
            // The server lists only the first rejections. The messages after them are sent again; stored
            // spans are skipped.
            again.extend(messages.into_iter().skip(last.saturating_add(1)));
        } else if told < result.rejected_count {
            let count = usize::try_from(result.rejected_count).unwrap_or_default();
            self.drop_spans(count, "rejected without a reason", "");
        }
        again
    }
}

/// Removes the oldest spans from the queue, up to the size of a stream.
fn cut(queue: &mut std::collections::VecDeque<Item>) -> Vec<Item> {
    let mut size = 0;
    let mut items = Vec::new();
    while size < STREAM_BYTES
        && let Some(item) = queue.pop_front()
    {
        size += item.size;
        items.push(item);
    }
    items
}

/// Returns whether a reason applies to all spans of a message.
fn is_about_attempt(reason: ErrorReason) -> bool {
    matches!(reason, ErrorReason::RolloutNotFound | ErrorReason::AttemptNotFound)
}
