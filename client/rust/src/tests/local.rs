//! What needs no server.

use std::sync::Arc;

use serde_json::json;
use tonic::{Code, Status};

use super::scripted::claim_of;
use crate::client::Client;
use crate::error::{CallError, Error};
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
        Status::cancelled("server goes down"),
        Status::unknown(broken),
        Status::internal("Unexpected EOF decoding stream."),
        reset,
    ] {
        assert_eq!(CallError::from(status).code, Code::Unavailable);
    }
    for status in [Status::internal("a defect"), Status::unknown("who knows"), Status::not_found("nobody")] {
        let code = status.code();
        assert_eq!(CallError::from(status).code, code); // the server's own word
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
