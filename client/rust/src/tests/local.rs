//! What needs no server.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry::trace::noop::NoopTracer;
use opentelemetry_sdk::trace::IdGenerator;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tonic::{Code, Status};

use super::scripted::claim_of;
use crate::client::Client;
use crate::error::{CallError, Error};
use crate::ids::SystemIds;
use crate::losses::Losses;
use crate::proto::*;

#[test]
fn tokens_stay_off_plain_text() {
    let error = Client::builder().address("127.0.0.1:1").token("secret-token").build().unwrap_err();
    assert!(matches!(error, Error::Argument(_)));
    assert!(!error.to_string().contains("secret-token"));
    let allowed =
        Client::builder().address("127.0.0.1:1").token("secret-token").allow_insecure_token().build();
    assert!(!format!("{:?}", allowed.unwrap()).contains("secret-token"));
    Client::builder().address("https://127.0.0.1:1").token("t").build().unwrap();
    let error = Client::builder().address("https://127.0.0.1:1").token("two\nlines").build().unwrap_err();
    assert!(!error.to_string().contains("two"));
}

#[test]
fn addresses_that_are_none_are_refused() {
    for address in ["http://127.0.0.1:1", "ftp://h:1", "a b", "https://"] {
        let error = Client::new(address).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:4747"), "{address}: {error}");
    }
    for address in ["127.0.0.1:1", "[::1]:1", "store:1", "https://store:1/", "unix:/tmp/store"] {
        Client::new(address).unwrap();
    }
}

#[test]
fn what_a_broken_connection_makes_of_calls_is_unavailable() {
    let broken = "protocol error: missing grpc-status trailer, stream was terminated";
    let mut reset = Status::internal("h2 protocol error");
    reset.set_source(Arc::new(std::io::Error::other("reset by peer")));
    for status in [
        Status::cancelled("server is shutting down"),
        Status::unknown(broken),
        Status::internal("Unexpected EOF decoding stream."),
        reset,
    ] {
        assert_eq!(CallError::from(status).code, Code::Unavailable);
    }
    for status in [Status::internal("a defect"), Status::unknown("who knows"), Status::not_found("nobody")] {
        let code = status.code();
        assert_eq!(CallError::from(status).code, code); // sent by the server
    }
}

#[test]
fn resources_are_found_by_kind() {
    let mut resources = Resources::default();
    for (name, resource) in [
        ("llm", Resource::llm("http://h", "m")),
        ("prompt", Resource::prompt_template("say {x}", TemplateEngine::FString)),
        ("weights", Resource::custom("weights", &[0.5]).unwrap()),
    ] {
        resources.resources.insert(name.into(), resource);
    }
    assert_eq!(resources.llm("llm").unwrap().model, "m");
    assert_eq!(resources.prompt_template("prompt").unwrap().format(&json!({"x": 1})).unwrap(), "say 1");
    assert_eq!(resources.custom::<Vec<f64>>("weights").unwrap(), [0.5]);
    assert!(resources.llm("prompt").is_none() && resources.prompt_template("none").is_none());
    assert!(resources.custom::<f64>("llm").unwrap_err().to_string().contains("\"llm\""));
    assert!(matches!(resources.custom::<f64>("weights"), Err(Error::Json(_))));
}

fn refusal<T: std::fmt::Debug>(made: Result<T, Error>) -> String {
    match made {
        Err(Error::Argument(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[derive(Serialize)]
enum Kind {
    One(f64),
    Several { rates: (u8, f32) },
}

#[test]
fn numbers_that_json_has_not_are_refused_by_their_place() {
    let tail = ", which JSON cannot represent: use null or a string";
    let rates = HashMap::from([("rates", vec![Some(1.0), None, Some(f64::NAN)])]);
    assert_eq!(refusal(RolloutSpec::new(&rates)), format!("input.rates[2] is NaN{tail}"));
    let several = [Kind::One(1.0), Kind::Several { rates: (1, f32::NEG_INFINITY) }];
    assert_eq!(refusal(RolloutSpec::new(&several)), format!("input[1].Several.rates[1] is -inf{tail}"));
    let numbered = HashMap::from([(7, Kind::One(f64::INFINITY))]);
    let spec = RolloutSpec::new(&1).unwrap();
    assert_eq!(refusal(spec.with_metadata(&numbered)), format!("metadata.7.One is inf{tail}"));
    assert_eq!(refusal(Resource::custom("kind", &f64::NAN)), format!("value is NaN{tail}"));
}

#[test]
fn values_are_written_as_serde_json_does() {
    let raw = RawValue::from_string("1e400".into()).unwrap();
    assert_eq!(RolloutSpec::new(&raw).unwrap().input_json, b"1e400");
    let value = json!({"a": [1, -2.5, null, "x", {"b": true}], "c": u128::from(u64::MAX)});
    assert_eq!(RolloutSpec::new(&value).unwrap().input_json, serde_json::to_vec(&value).unwrap());
    assert_eq!(RolloutSpec::new(&i128::MAX).unwrap().input_json, i128::MAX.to_string().as_bytes());
    assert!(matches!(RolloutSpec::new(&HashMap::from([(vec![1], 1)])), Err(Error::Json(_))));
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is logged while something runs, a line each.
pub(super) fn logged(work: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let format = tracing_subscriber::fmt().without_time().with_ansi(false);
    let subscriber = format.with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(Into::into).collect()
}

#[test]
fn losses_are_logged_at_once_and_then_once_a_minute() {
    let losses = Losses::default();
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let lines = logged(|| {
        losses.add(1, "full", "first", began);
        losses.add(2, "full", "second", at(59));
        losses.add(1, "refused", "third", at(59));
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("count=1 total=1 detail=\"first\""), "{lines:?}");
    let lines = logged(|| losses.summarize(at(60), false));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("count=2 total=4 detail=\"second\""), "{lines:?}");
    let lines = logged(|| {
        losses.add(1, "full", "last", at(61));
        losses.summarize(at(61), true);
        losses.summarize(at(200), true);
    });
    assert_eq!((lines.len(), losses.total()), (1, 5), "{lines:?}");
}

#[test]
fn a_reward_that_nobody_records_is_an_error() {
    let error = crate::emit_reward(&NoopTracer::new(), 1.0).unwrap_err();
    assert!(error.to_string().starts_with("the reward is lost"), "{error}");
}

#[test]
fn system_ids_are_new_each_time() {
    let ids: HashSet<_> = (0..1000).map(|_| SystemIds.new_span_id()).collect();
    assert_eq!(ids.len(), 1000);
    assert_ne!(SystemIds.new_trace_id(), SystemIds.new_trace_id());
    assert_ne!(crate::ids::new_request_id(), crate::ids::new_request_id());
}

#[test]
fn keys_of_endpoints_are_in_no_log() {
    let llm = Llm { api_key: "secret".into(), ..Default::default() };
    assert!(!format!("{:?}", Resource::from(ProxyLlm { llm: Some(llm) })).contains("secret"));
}

#[test]
fn templates_want_an_object() {
    let template = PromptTemplate { template: String::new(), engine: TemplateEngine::FString.into() };
    assert!(matches!(template.format(&1), Err(Error::Argument(_))));
    let unknown = PromptTemplate { engine: 99, ..template };
    assert!(unknown.format(&json!({})).unwrap_err().to_string().contains("99"));
}

#[test]
fn long_messages_are_cut_between_characters() {
    let failure = crate::Failure::new("é".repeat(10_000)).into_proto();
    assert_eq!(failure.message, "é".repeat(8_192));
    assert_eq!(crate::Failure::new("").kind("Empty").into_proto().message, "Empty");
    assert_eq!(claim_of("ro-1", "1").attempt_id(), "at-1");
}
