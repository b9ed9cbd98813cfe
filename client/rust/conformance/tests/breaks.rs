//! Connections that break under a call, as the library sees them with the features that users build it with. Its own
//! tests need tonic's `server`, with which tonic names what HTTP/2 says of a break; without, it does not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use futures_util::stream;
use lightningstore::proto::{GetServerInfoRequest, IngestSpansRequest, QuerySpansRequest};
use lightningstore::{Client, Error};
use tonic::{Code, Status};

const HEADERS: u8 = 1;
/// Length, type, flags and stream of an HTTP/2 frame.
const FRAME_HEADER: usize = 9;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
    bytes.extend(payload);
    bytes
}

/// The beginning of an answer: status 200, content-type application/grpc.
fn begin() -> Vec<u8> {
    frame(HEADERS, 4, 1, b"\x88\x0f\x10\x10application/grpc")
}

/// Trailers that end it with a status of gRPC's.
fn end(status: u8) -> Vec<u8> {
    let mut block = b"\x00\x0bgrpc-status\x01".to_vec();
    block.push(b'0' + status);
    frame(HEADERS, 5, 1, &block)
}

/// A message of which most is to come.
fn part(flags: u8) -> Vec<u8> {
    frame(0, flags, 1, &[0, 0, 0, 200, 0, 0, 0, 0])
}

fn reset(code: u8) -> Vec<u8> {
    frame(3, 0, 1, &[0, 0, 0, code])
}

/// The connection's end; `last`: the last stream that is still answered.
fn go_away(last: u8, code: u8) -> Vec<u8> {
    frame(7, 0, 0, &[0, 0, 0, last, 0, 0, 0, code])
}

/// Answers the first call of a connection with frames, then perhaps closes it.
fn answer(mut connection: TcpStream, frames: &[u8], closes: bool) -> std::io::Result<()> {
    connection.write_all(&frame(4, 0, 0, &[]))?;
    connection.read_exact(&mut [0; 24])?; // the preface
    let mut header = [0; FRAME_HEADER];
    loop {
        connection.read_exact(&mut header)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        connection.read_exact(&mut vec![0; length as usize])?;
        if header[3] == HEADERS {
            connection.write_all(frames)?;
            if closes {
                connection.shutdown(Shutdown::Write)?;
            }
        }
    }
}

/// A client of a server that breaks its calls.
fn client_of(frames: &[u8], closes: bool) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let frames = frames.to_vec();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let frames = frames.clone();
            thread::spawn(move || answer(connection.unwrap(), &frames, closes));
        }
    });
    Client::new(address.to_string()).unwrap()
}

/// What a call with one answer, a stream of requests and a stream of answers fail with.
async fn failures(frames: &[u8], closes: bool) -> [Status; 3] {
    let unary = client_of(frames, closes).stub().get_server_info(GetServerInfoRequest::default()).await;
    let messages = stream::iter([IngestSpansRequest::default()]);
    let writing = client_of(frames, closes).stub().ingest_spans(messages).await;
    let client = client_of(frames, closes);
    let reading = match client.stub().query_spans(QuerySpansRequest::default()).await {
        Ok(answer) => answer.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    [unary.unwrap_err(), writing.unwrap_err(), reading.unwrap_err()]
}

async fn is_unavailable(name: &str, frames: &[u8], closes: bool) {
    for status in failures(frames, closes).await {
        let seen = format!("{name}: {status:?}");
        assert_eq!(Error::from(status).code(), Some(Code::Unavailable), "{seen}");
    }
}

#[tokio::test]
async fn streams_that_are_reset() {
    for code in [0, 1, 2, 3, 5, 7, 8, 11] {
        is_unavailable(&format!("reset {code}"), &reset(code), false).await;
        is_unavailable(&format!("begun, reset {code}"), &[begin(), reset(code)].concat(), false).await;
        let late = [begin(), part(0), reset(code)].concat();
        is_unavailable(&format!("half a message, reset {code}"), &late, false).await;
    }
}

#[tokio::test]
async fn streams_that_end_early() {
    is_unavailable("no trailers", &[begin(), frame(0, 1, 1, &[])].concat(), false).await;
    is_unavailable("half a message", &[begin(), part(1)].concat(), false).await;
    is_unavailable("half a message, cancelled", &[begin(), part(0), end(1)].concat(), false).await;
    is_unavailable("cancelled", &[begin(), end(1)].concat(), false).await;
}

#[tokio::test]
async fn connections_that_end() {
    is_unavailable("closed", &[], true).await;
    is_unavailable("begun, closed", &begin(), true).await;
    is_unavailable("half a message, closed", &[begin(), part(0)].concat(), true).await;
    for (last, code) in [(0, 0), (1, 0), (1, 2), (1, 11)] {
        is_unavailable(&format!("GOAWAY {last} {code}"), &go_away(last, code), true).await;
        let late = [begin(), part(0), go_away(last, code)].concat();
        is_unavailable(&format!("half a message, GOAWAY {last} {code}"), &late, true).await;
    }
}

#[tokio::test]
async fn what_the_server_says_stays() {
    for (status, code) in [(2, Code::Unknown), (8, Code::ResourceExhausted), (3, Code::InvalidArgument)] {
        for said in failures(&[begin(), end(status)].concat(), false).await {
            assert_eq!(Error::from(said).code(), Some(code));
        }
    }
}
