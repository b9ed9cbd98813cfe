//! A thread for work that must continue whatever the user's code does to its own runtime: the connection,
//! heartbeats, the sending of spans.

use std::future::Future;
use std::thread;

use hyper::rt::Executor;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// A thread with a small runtime.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    handle: Handle,
}

impl Background {
    /// Starts the thread. It ends, with everything that runs on it, when the token is cancelled.
    ///
    /// # Panics
    ///
    /// If the system cannot create a thread, as in the standard library.
    pub(crate) fn start(end: CancellationToken) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let body = move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background(); // no waiting for names that are being resolved
        };
        thread::Builder::new().name("lightningstore".into()).spawn(body).expect("a thread");
        Self { handle }
    }

    /// Runs a future on the thread. After the end of the thread it is dropped at once.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Background {
    fn execute(&self, work: F) {
        self.spawn(work);
    }
}
