use lightningstore::{Client, Failure, Runner, Task};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer as _};
use serde::Deserialize;

#[derive(Deserialize)]
struct Question {
    question: i64,
}

/// Works on one rollout and returns its reward.
async fn agent(task: Task<Question>) -> Result<f64, Failure> {
    if task.input.question == 7 {
        return Err(Failure::new("this question has no answer").not_retryable());
    }
    let mut span = task.tracer.start("think");
    if let Some(llm) = task.resources.llm("model") {
        span.set_attribute(KeyValue::new("endpoint", llm.endpoint.clone()));
    }
    span.end();
    Ok(task.input.question as f64 / 10.0)
}

#[tokio::main]
async fn main() -> Result<(), lightningstore::Error> {
    tracing_subscriber::fmt().init(); // shows warnings of the runner
    let client = Client::new("")?; // LIGHTNINGSTORE_ADDRESS, else 127.0.0.1:4747
    Runner::new(&client, agent).concurrency(4).run_with_signals().await // until Ctrl-C
}
