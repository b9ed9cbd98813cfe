//! Records rewards as spans, and finds the last one.

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer};
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use serde_json::Value as Json;

use crate::error::Error;
use crate::spans::Span;

pub(crate) const ANNOTATION: &str = "agentlightning.annotation";
const REWARD: &str = "agentlightning.reward";
const OUTPUTS: [&str; 2] = ["agentops.task.output", "agentops.entity.output"];

/// Records a reward of the attempt as a span of the tracer, under OpenTelemetry's current span.
///
/// # Errors
///
/// For a number that is not finite, and for a tracer that does not record, like the global one without an
/// SDK.
pub fn emit_reward(tracer: &impl Tracer, value: f64) -> Result<(), Error> {
    emit_rewards(tracer, &[("primary", value)], None)
}

/// Records a reward with several dimensions, by name, in one span. `primary` names the primary dimension;
/// `None`: the first one.
///
/// # Errors
///
/// As for [`emit_reward`], and for a reward without dimensions.
pub fn emit_rewards(
    tracer: &impl Tracer,
    dimensions: &[(&str, f64)],
    primary: Option<&str>,
) -> Result<(), Error> {
    let Some(&(first, _)) = dimensions.first() else {
        return Err(Error::argument("a reward needs at least one dimension"));
    };
    let primary = primary.unwrap_or(first);
    if !dimensions.iter().any(|(name, _)| *name == primary) {
        return Err(Error::argument(format!("{primary:?} must be a dimension of the reward")));
    }
    let mut ordered = dimensions.to_vec();
    ordered.sort_by_key(|(name, _)| *name != primary); // stable: the others keep their order
    let mut attributes = Vec::with_capacity(2 * ordered.len());
    for (index, (name, value)) in ordered.into_iter().enumerate() {
        if !value.is_finite() {
            return Err(Error::argument(format!("a reward must be a finite number, not {value}")));
        }
        attributes.push(KeyValue::new(format!("{REWARD}.{index}.name"), name.to_owned()));
        attributes.push(KeyValue::new(format!("{REWARD}.{index}.value"), value));
    }
    let mut span = tracer.span_builder(ANNOTATION).with_attributes(attributes).start(tracer);
    let is_recorded = span.is_recording() && span.span_context().is_sampled();
    span.end();
    if is_recorded {
        Ok(())
    } else {
        Err(Error::argument(
            "the reward is lost, because the tracer does not record: pass the tracer of the task",
        ))
    }
}

/// Returns the primary reward of the last span that has one, by sequence id, regardless of the order of the
/// argument. It supports the forms that other clients and tracers write.
pub fn find_final_reward<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Option<f64> {
    let place = |span: &Span| (span.sequence_id, span.otlp.start_time_unix_nano);
    spans
        .into_iter()
        .filter_map(|span| Some((place(span), reward_of(span)?)))
        .max_by_key(|(place, _)| *place)
        .map(|(_, reward)| reward)
}

fn reward_of(span: &Span) -> Option<f64> {
    let first = span.otlp.attributes.iter().filter_map(|pair| index_of(&pair.key)).min();
    if let Some(index) = first {
        return number(span.attribute(&format!("{REWARD}.{index}.value"))?);
    }
    if let Some(value) = span.attribute(REWARD) {
        return given(value);
    }
    for output in OUTPUTS.into_iter().filter_map(|key| span.attribute(key)) {
        match json(output) {
            Some(Json::Object(output)) if output.get("type") == Some(&"reward".into()) => {
                return reward_in(output.get("value")?);
            }
            _ => {}
        }
    }
    match span.otlp.name.as_str() {
        ANNOTATION | REWARD => given(span.attribute("reward")?),
        _ => None,
    }
}

fn index_of(key: &str) -> Option<u32> {
    let digits = key.strip_prefix(REWARD)?.strip_prefix('.')?.strip_suffix(".value")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Reads a number. Other clients may have stored a whole number as an integer.
fn number(value: &AnyValue) -> Option<f64> {
    match value.value.as_ref()? {
        Value::DoubleValue(value) => Some(*value).filter(|value| value.is_finite()),
        Value::IntValue(value) => Some(*value as f64),
        _ => None,
    }
}

/// Parses a reward given as one value: a number, or the JSON of a number, a named reward, or a list of them.
fn given(value: &AnyValue) -> Option<f64> {
    number(value).or_else(|| reward_in(&json(value)?))
}

fn reward_in(value: &Json) -> Option<f64> {
    match value {
        Json::Array(values) => match values.first()? {
            Json::Object(named) => named.get("value")?.as_f64(),
            first => first.as_f64(),
        },
        Json::Object(named) => named.get("value")?.as_f64(),
        Json::String(text) => reward_in(&serde_json::from_str(text).ok().filter(|v: &Json| !v.is_string())?),
        other => other.as_f64(),
    }
}

fn json(value: &AnyValue) -> Option<Json> {
    match value.value.as_ref()? {
        Value::StringValue(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}
