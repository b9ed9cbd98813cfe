use futures_util::TryStreamExt;
use lightningstore::proto::{QuerySpansRequest, RolloutSpec, StartRolloutRequest};
use lightningstore::{Client, SpanExporter};
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::new("")?;
    let spec = RolloutSpec::new(&json!({"question": 2}))?;
    let request = StartRolloutRequest { rollout: Some(spec), ..Default::default() };
    let rollout = client.call(request).await?.rollout.unwrap_or_default();

    let exporter = SpanExporter::new(&client).attempt(&rollout.rollout_id, &rollout.latest_attempt_id);
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    provider.tracer("my.agent").in_span("step", |_| {});
    exporter.flush().await; // all of them are stored or dropped
    println!("{} dropped", exporter.dropped());

    let query = QuerySpansRequest { rollout_id: rollout.rollout_id, ..Default::default() };
    let mut spans = client.spans(query);
    while let Some(span) = spans.try_next().await? {
        println!("{} {}", span.sequence_id, span.otlp.name);
    }
    provider.shutdown()?; // sends the remaining spans, for at most 5 seconds
    Ok(())
}
