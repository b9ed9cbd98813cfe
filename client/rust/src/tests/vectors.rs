//! The vectors that all clients share.

use std::fs;

use opentelemetry::trace::TracerProvider;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;

use super::scripted::serve;
use crate::error::{Error, TemplateProblem};
use crate::exporter::SpanExporter;
use crate::proto::{Llm, PromptTemplate, ProxyLlm, TemplateEngine};
use crate::reward::{emit_rewards, find_final_reward};
use crate::spans::Span;

fn cases(file: &str, key: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/conformance/vectors/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let file: Value = serde_json::from_str(&text).unwrap();
    let cases = file[key].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn text(case: &Value, key: &str) -> String {
    case[key].as_str().unwrap_or_default().to_owned()
}

#[test]
fn templates() {
    for case in cases("templates", "cases") {
        let engine = match case["engine"].as_str().unwrap() {
            "f_string" => TemplateEngine::FString,
            "jinja" => TemplateEngine::Jinja,
            "poml" => TemplateEngine::Poml,
            other => panic!("engine {other}"),
        };
        let template = PromptTemplate { template: text(&case, "template"), engine: engine.into() };
        let found = template.format(&case["variables"]);
        let Some(error) = case["error"].as_str() else {
            assert_eq!(
                found.unwrap_or_else(|error| panic!("{error}: {case}")),
                text(&case, "text"),
                "{case}"
            );
            continue;
        };
        let Err(Error::Template { problem, message }) = found else { panic!("{found:?}: {case}") };
        let expected = match error {
            "missing" => TemplateProblem::Missing,
            "malformed" => TemplateProblem::Malformed,
            "no_library" => TemplateProblem::Unsupported,
            _ => problem, // any will do
        };
        assert_eq!(problem, expected, "{message}: {case}");
        assert!(message.contains(&text(&case, "names")), "{message}: {case}");
    }
}

#[test]
fn base_urls() {
    for case in cases("base_urls", "cases") {
        let llm = Llm { endpoint: text(&case, "endpoint"), ..Default::default() };
        let proxy = ProxyLlm { llm: Some(llm) };
        match (proxy.base_url(&text(&case, "rollout_id"), &text(&case, "attempt_id")), case["error"].as_str())
        {
            (Ok(url), None) => assert_eq!(url, text(&case, "url"), "{case}"),
            (Err(error), Some(word)) => assert!(error.to_string().contains(word), "{error}: {case}"),
            (found, _) => panic!("{found:?}: {case}"),
        }
    }
}

fn to_span(given: &Value) -> Span {
    let attribute = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => Any::StringValue(text.clone()),
            Value::Number(number) if number.is_i64() => Any::IntValue(number.as_i64().unwrap()),
            other => Any::DoubleValue(other.as_f64().unwrap()),
        };
        let value = Some(AnyValue { value: Some(value) });
        KeyValue { key: key.clone(), value, ..Default::default() }
    };
    let mut otlp =
        opentelemetry_proto::tonic::trace::v1::Span { name: text(given, "name"), ..Default::default() };
    otlp.attributes = given["attributes"].as_object().unwrap().iter().map(attribute).collect();
    Span {
        otlp,
        rollout_id: "ro-1".into(),
        attempt_id: "at-1".into(),
        sequence_id: given["sequence_id"].as_i64().unwrap(),
        resource: None,
        scope: None,
    }
}

#[test]
fn final_rewards() {
    for case in cases("rewards", "find_final_reward") {
        let spans: Vec<_> = case["spans"].as_array().unwrap().iter().map(to_span).collect();
        assert_eq!(find_final_reward(&spans), case["reward"].as_f64(), "{case}");
    }
}

/// A number, as text where JSON has no such one.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn emitted_rewards() {
    let (stored, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let world = serve(|kept| {
        let kept = kept.clone();
        let ingest = move |batches: Vec<crate::proto::SpanBatch>| {
            let result = kept.store(&batches);
            batches.into_iter().flat_map(|batch| batch.spans).for_each(|span| stored.send(span).unwrap());
            Ok(result)
        };
        super::scripted::Script { ingest: Some(Box::new(ingest)), ..Default::default() }
    });
    let exporter = SpanExporter::new(&world.client).attempt("ro-1", "at-1");
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    for case in cases("rewards", "emit_reward") {
        let dimensions: Vec<(&str, f64)> = match &case["reward"] {
            Value::Array(pairs) => {
                pairs.iter().map(|pair| (pair[0].as_str().unwrap(), number(&pair[1]))).collect()
            }
            value => vec![("primary", number(value))],
        };
        let written = emit_rewards(&provider.tracer("test"), &dimensions, case["primary"].as_str());
        if let Some(word) = case["error"].as_str() {
            let error = written.unwrap_err().to_string();
            assert!(error.contains(word), "{error}: {case}");
            continue; // the next span to arrive is another case's
        }
        written.unwrap();
        super::soon(exporter.flush()).await;
        let span = super::next(&mut arrived).await;
        assert_eq!(span.name, "agentlightning.annotation");
        assert_eq!(span.attributes.len(), case["attributes"].as_object().unwrap().len());
        for KeyValue { key, value, .. } in span.attributes {
            match value.unwrap().value.unwrap() {
                Any::StringValue(name) => assert_eq!(case["attributes"][&key], name, "{case}"),
                Any::DoubleValue(value) => {
                    assert_eq!(case["attributes"][&key].as_f64(), Some(value), "{case}")
                }
                other => panic!("{other:?}: {case}"),
            }
        }
    }
}
