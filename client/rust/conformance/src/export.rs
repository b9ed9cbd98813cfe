//! Exports spans of the OpenTelemetry SDK, with this project's exporter or the standard one.

use lightningstore::{Client, SpanExporter};
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Value, json};

use crate::Command;

/// Creates and exports the spans of a command.
pub(crate) async fn export(address: &str, client: &Client, command: Command) -> Value {
    let Command { exporter, rollout_id, attempt_id, spans, .. } = command;
    match exporter.as_str() {
        "sdk" => {
            let exporter = SpanExporter::new(client).attempt(rollout_id, attempt_id);
            let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
            let ids = make_spans(&provider, &spans);
            exporter.flush().await;
            json!({"span_ids": ids})
        }
        "otlp" => otlp(format!("http://{address}"), rollout_id, attempt_id, spans).await,
        other => json!({"unsupported": format!("no exporter {other:?}")}),
    }
}

async fn otlp(address: String, rollout_id: String, attempt_id: String, spans: Vec<String>) -> Value {
    let built = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(address).build();
    let exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => return failed(error),
    };
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("agentlightning.rollout_id", rollout_id))
        .with_attribute(KeyValue::new("agentlightning.attempt_id", attempt_id))
        .build();
    let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
    let ids = make_spans(&provider, &spans);
    let flushed = tokio::task::spawn_blocking(move || provider.force_flush().and(provider.shutdown()));
    match flushed.await {
        Ok(Ok(())) => json!({"span_ids": ids}),
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}

fn failed(error: impl std::fmt::Display) -> Value {
    json!({"error": {"code": "UNKNOWN", "message": error.to_string()}})
}

/// Creates a span with each name, each the child of the previous one, and returns their ids.
fn make_spans(provider: &SdkTracerProvider, names: &[String]) -> Vec<String> {
    let tracer = provider.tracer("conformance");
    let mut parent = Context::new();
    let mut ids = Vec::new();
    for name in names {
        let span = tracer.start_with_context(name.clone(), &parent);
        ids.push(span.span_context().span_id().to_string());
        parent = parent.with_span(span); // ends when its last child has ended
    }
    ids
}
