//! Streams that resume after a broken connection.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::Stream;
use tokio::time::{Sleep, sleep};
use tonic::{Response, Status, Streaming};

use crate::backoff::{Backoff, MAX_PAUSE, OUTAGE};
use crate::client::{Client, Stub};
use crate::error::Error;

pub(crate) type Opening<M> = Pin<Box<dyn Future<Output = Result<Response<Streaming<M>>, Status>> + Send>>;

/// A request and the progress of its stream.
pub(crate) trait Query: Unpin {
    /// A message of the server.
    type Message: Unpin;
    /// An item for the caller.
    type Item: Unpin;

    /// Starts a call, after a break for the missing items; `None` if none are missing.
    fn open(&mut self, stub: Stub) -> Option<Opening<Self::Message>>;
    /// Adds the items of a message.
    fn take(&mut self, message: Self::Message, items: &mut VecDeque<Self::Item>);
    /// Returns whether all items have arrived when a stream has ended. `well`: without an error.
    fn is_complete(&self, well: bool) -> bool;
}

/// The responses to a query. A stream that breaks is opened again, until the server has been down for ten
/// minutes.
pub(crate) struct Resumed<Q: Query> {
    client: Client,
    pub(crate) query: Q,
    items: VecDeque<Q::Item>,
    phase: Phase<Q::Message>,
    pauses: Backoff,
    broken: Option<Instant>,
}

enum Phase<M> {
    Closed,
    Opening(Opening<M>),
    Open(Box<Streaming<M>>),
    Pausing(Pin<Box<Sleep>>),
    Over,
}

impl<Q: Query> Resumed<Q> {
    pub(crate) fn new(client: &Client, query: Q) -> Self {
        let (client, items) = (client.clone(), VecDeque::new());
        Self { client, query, items, phase: Phase::Closed, pauses: Backoff::new(MAX_PAUSE), broken: None }
    }

    fn heard(&mut self) {
        if self.broken.take().is_some() {
            self.pauses = Backoff::new(MAX_PAUSE);
        }
    }

    /// Decides what follows the end of a stream; returns the error if that is final.
    fn ended(&mut self, failure: Option<Error>) -> Option<Error> {
        if self.query.is_complete(failure.is_none()) {
            self.phase = Phase::Over;
            return None;
        }
        let failure = failure.unwrap_or_else(|| Error::unavailable("the stream ended early"));
        let failure = self.client.explain(failure);
        let broken = *self.broken.get_or_insert_with(Instant::now);
        if !failure.is_retryable() || broken.elapsed() > OUTAGE {
            self.phase = Phase::Over;
            return Some(failure);
        }
        tracing::debug!(error = %failure, "stream resumed");
        self.phase = Phase::Pausing(Box::pin(sleep(self.pauses.next(&failure))));
        None
    }
}

impl<Q: Query> Stream for Resumed<Q> {
    type Item = Result<Q::Item, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(item) = this.items.pop_front() {
                return Poll::Ready(Some(Ok(item)));
            }
            let failure = match &mut this.phase {
                Phase::Closed => {
                    let opening = this.query.open(this.client.stub());
                    this.phase = opening.map_or(Phase::Over, Phase::Opening);
                    continue;
                }
                Phase::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(response) => {
                        this.phase = Phase::Open(Box::new(response.into_inner()));
                        continue;
                    }
                    Err(status) => Some(status.into()),
                },
                Phase::Open(stream) => match ready!(Pin::new(stream).poll_next(context)) {
                    Some(Ok(message)) => {
                        this.heard();
                        this.query.take(message, &mut this.items);
                        continue;
                    }
                    Some(Err(status)) => Some(status.into()),
                    None => None,
                },
                Phase::Pausing(pause) => {
                    ready!(pause.as_mut().poll(context));
                    this.phase = Phase::Closed;
                    continue;
                }
                Phase::Over => return Poll::Ready(None),
            };
            if let Some(failure) = this.ended(failure) {
                return Poll::Ready(Some(Err(failure)));
            }
        }
    }
}

impl<Q: Query> Debug for Resumed<Q> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumed").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Defines a public stream for a query.
macro_rules! stream {
    ($name:ident yields $item:ty) => {
        impl futures_util::Stream for $name {
            type Item = Result<$item, crate::error::Error>;

            fn poll_next(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                std::pin::Pin::new(&mut self.0).poll_next(context)
            }
        }
    };
}
pub(crate) use stream;
