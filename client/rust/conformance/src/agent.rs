//! The scripted agent, controlled by the rollout's input.

use std::time::Duration;

use lightningstore::proto::Resources;
use lightningstore::proto::resource::Kind;
use lightningstore::{Failure, Task};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Script {
    #[serde(default)]
    spans: Vec<String>,
    resource: Option<String>,
    #[serde(default)]
    wait: bool,
    fail: Option<Fail>,
    reward: Option<f64>,
}

#[derive(Deserialize)]
struct Fail {
    message: String,
    retryable: Option<bool>,
    attempts: Option<Vec<i32>>,
}

/// Performs the actions of the input, in their order.
pub(crate) async fn agent(task: Task<Option<Script>>) -> Result<Option<f64>, Failure> {
    let Some(script) = &task.input else { return Ok(None) };
    for name in &script.spans {
        task.tracer.start(name.clone()).end();
    }
    if let Some(name) = &script.resource {
        let mut span = task.tracer.start("resource");
        span.set_attribute(KeyValue::new("value", shown(&task.resources, name)));
        span.end();
    }
    if script.wait {
        let cancelled = task.cancellation.cancelled();
        let _ = tokio::time::timeout(Duration::from_secs(60), cancelled).await;
        task.tracer.start("cancelled").end();
        return Err(Failure::new("cancelled"));
    }
    let number = task.sequence_number();
    let fails = |fail: &&Fail| fail.attempts.as_ref().is_none_or(|attempts| attempts.contains(&number));
    match script.fail.as_ref().filter(fails) {
        Some(fail) if fail.retryable == Some(false) => Err(Failure::new(&fail.message).not_retryable()),
        Some(fail) => Err(Failure::new(&fail.message)),
        None => Ok(script.reward),
    }
}

/// Returns the value that identifies a resource.
fn shown(resources: &Resources, name: &str) -> String {
    match resources.resources.get(name).and_then(|resource| resource.kind.as_ref()) {
        Some(Kind::Llm(llm)) => llm.endpoint.clone(),
        Some(Kind::PromptTemplate(prompt)) => prompt.template.clone(),
        Some(Kind::Custom(custom)) => String::from_utf8_lossy(&custom.value_json).into_owned(),
        Some(Kind::ProxyLlm(_)) | None => String::new(),
    }
}
