//! A first call to a server that is not there: a warning soon, and an error that helps.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use super::local::logged;
use super::scripted::{Script, serve};
use super::soon;
use crate::client::Client;
use crate::contact::Contact;

const HINT: &str = "is `lightningstore serve` running there?";

fn contact() -> Contact {
    Contact::new("store:4747")
}

#[test]
fn a_warning_names_the_address_two_seconds_after_the_first_call() {
    let contact = contact();
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let lines = logged(|| {
        assert!(contact.called(began));
        contact.failed(at(1));
        assert!(!contact.called(at(1)));
    });
    assert!(lines.is_empty(), "{lines:?}");
    let lines = logged(|| {
        contact.report(at(2));
        contact.report(at(3));
        contact.failed(at(3));
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&format!("no server has answered at store:4747 for 2s: {HINT}")), "{lines:?}");
}

#[test]
fn a_connection_that_takes_longer_to_fail_is_reported_then() {
    let contact = contact();
    let began = Instant::now();
    let lines = logged(|| {
        contact.called(began);
        contact.report(began + Duration::from_secs(2));
    });
    assert!(lines.is_empty(), "a first answer that takes long: {lines:?}");
    let lines = logged(|| contact.failed(began + Duration::from_secs(5)));
    assert_eq!(lines.len(), 1, "{lines:?}");
}

#[test]
fn nothing_is_reported_once_the_server_has_answered_or_the_client_is_closed() {
    let contact = contact();
    let began = Instant::now();
    let lines = logged(|| {
        contact.called(began);
        contact.failed(began);
        contact.end();
        contact.report(began + Duration::from_secs(2));
        contact.failed(began + Duration::from_secs(3));
    });
    assert!(lines.is_empty(), "{lines:?}");
}

#[tokio::test]
async fn the_error_names_the_address_until_the_server_has_answered() {
    let nowhere = Client::new("127.0.0.1:1").unwrap();
    let error = soon(nowhere.rollout("ro-1")).await.unwrap_err();
    let text = format!("no server answers at 127.0.0.1:1: {HINT}");
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert!(error.call().unwrap().message.starts_with(&text), "{error}");

    let refuse = |_| Err(Status::unavailable("not now"));
    let world = serve(|_| Script { rollout: Some(Box::new(refuse)), ..Default::default() });
    let error = soon(world.client.rollout("ro-1")).await.unwrap_err();
    assert_eq!(error.call().unwrap().message, "not now");
}
