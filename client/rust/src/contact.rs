//! The calls of a connection: they fail once their client is closed, and hint at a wrong address.
//!
//! Calls to a server that is down are retried, so that programs can start in any order. A wrong address would
//! therefore look like a call that hangs. Two seconds after the first call of a client, a warning names the
//! address; the error that ends such a call names it too.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Service, StdError};
use tonic::transport::Channel;
use tonic::transport::channel::ResponseFuture;
use tonic::{Code, Status};

use crate::background::Background;
use crate::error::{CLOSED, Error};

/// Time without an answer after which the first call of a client logs a warning.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Whether the server of a client has answered a call.
#[derive(Debug)]
pub(crate) struct Contact {
    address: String,
    /// Whether the server has answered, or the client was closed.
    over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first call was made.
    began: Option<Instant>,
    /// Whether a call has failed to connect. A first call may take long on a server that is there.
    failed: bool,
    reported: bool,
}

impl Contact {
    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.into(), over: AtomicBool::new(false), state: Mutex::default() }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Notes that the server has answered, or that the client was closed.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Notes a call. Returns whether it is the first: then `report` must be called after `FIRST_ANSWER`.
    pub(crate) fn called(&self, now: Instant) -> bool {
        let mut state = self.state.lock().expect("no panic inside");
        let is_first = state.began.is_none();
        state.began.get_or_insert(now);
        is_first
    }

    /// Notes that a call could not connect.
    pub(crate) fn failed(&self, now: Instant) {
        self.state.lock().expect("no panic inside").failed = true;
        self.report(now);
    }

    /// Logs the warning, once, if it is time and no connection was made.
    pub(crate) fn report(&self, now: Instant) {
        let mut state = self.state.lock().expect("no panic inside");
        let is_due = state.began.is_some_and(|began| now - began >= FIRST_ANSWER);
        if self.is_over() || !is_due || !state.failed || state.reported {
            return;
        }
        state.reported = true;
        drop(state); // a subscriber that panics must leave no lock behind
        let address = &self.address;
        tracing::warn!(
            "no server has answered at {address} for {FIRST_ANSWER:?}: is `lightningstore serve` running there?"
        );
    }

    /// Returns the error of a call, with the hint if no connection was made.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Call(mut call) if call.code == Code::Unavailable && !self.is_over() => {
                call.message = format!(
                    "no server answers at {}: is `lightningstore serve` running there? {}",
                    self.address, call.message
                );
                Error::Call(call)
            }
            error => error,
        }
    }
}

/// A tonic channel that notes whether the server answers, and whose calls fail when the client is closed.
///
/// The channel alone could wait without end for the answer to a call that begins at that moment: it puts the call into
/// a queue that its task, which has ended, does not read any more.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    contact: Arc<Contact>,
    background: Background,
    closed: CancellationToken,
}

impl Connection {
    pub(crate) fn new(
        channel: Channel,
        contact: Arc<Contact>,
        background: Background,
        closed: CancellationToken,
    ) -> Self {
        Self { channel, contact, background, closed }
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let answer = self.channel.call(request);
        let closed = Box::pin(self.closed.clone().cancelled_owned());
        if self.contact.is_over() {
            return Answer { answer, closed, contact: None };
        }
        let contact = self.contact.clone();
        if contact.called(Instant::now()) {
            let contact = contact.clone();
            self.background.spawn(async move {
                sleep(FIRST_ANSWER).await;
                contact.report(Instant::now());
            });
        }
        Answer { answer, closed, contact: Some(contact) }
    }
}

/// The answer to a call of a [`Connection`].
pub struct Answer {
    answer: ResponseFuture,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    contact: Option<Arc<Contact>>,
}

impl Future for Answer {
    type Output = Result<Response<Body>, StdError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(context) else {
            ready!(self.closed.as_mut().poll(context));
            return Poll::Ready(Err(Box::new(Status::cancelled(CLOSED))));
        };
        match (&self.contact, &answer) {
            (None, _) => {}
            (Some(contact), Ok(_)) => contact.end(),
            (Some(contact), Err(_)) => contact.failed(Instant::now()),
        }
        Poll::Ready(answer.map_err(Into::into))
    }
}
