//! Against scripted servers in process, and against the real one.

mod client;
mod contact;
mod control;
mod exporter;
mod finishes;
mod local;
mod namespaces;
mod outcomes;
mod runner;
mod scripted;
mod security;
mod server;
mod vectors;

use std::future::Future;
use std::time::Duration;

use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;

use crate::exporter::SpanExporter;

/// How long tests wait for an event that has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says so when it is dropped.
struct Dropped(UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Waits for something that has to happen.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.expect("an event in time")
}

/// Waits for what a channel brings next.
async fn next<T>(events: &mut UnboundedReceiver<T>) -> T {
    soon(events.recv()).await.expect("one more event")
}

/// Ends a span of each name with an exporter.
fn make_spans(exporter: &SpanExporter, names: &[&str]) {
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = provider.tracer("test");
    for name in names {
        tracer.start((*name).to_owned()).end();
    }
    std::mem::forget(provider); // it would shut the exporter down
}
