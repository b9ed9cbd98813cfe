//! Calls any method of the contract, from its descriptor.

use std::sync::LazyLock;
use std::time::Duration;

use lightningstore::{CallError, Client, Transport};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::{Code, Request, Status, Streaming};

use crate::{Command, answer};

const MAX_MESSAGE_BYTES: usize = 65 << 20;

static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let set: &[u8] = include_bytes!("../../proto/lightningstore.binpb");
    DescriptorPool::decode(set).expect("a descriptor set")
});

/// Calls a method of any kind and returns the answer.
pub(crate) async fn call(client: &Client, command: &Command, cancelled: &CancellationToken) -> Value {
    let method =
        CONTRACT.services().find_map(|service| service.methods().find(|m| m.name() == command.method));
    let Some(method) = method else {
        return json!({"unsupported": format!("no method {:?}", command.method)});
    };
    let mut responses = Vec::new();
    let timeout = Duration::from_secs_f64(command.timeout);
    let ended = tokio::select! {
        ended = exchange(client.transport(), &method, command, &mut responses) => ended,
        () = tokio::time::sleep(timeout) => Err(Status::deadline_exceeded("no answer in time")),
        () = cancelled.cancelled() => Err(Status::cancelled("cancelled")),
    };
    match ended {
        Ok(()) => json!({"responses": responses}),
        Err(status) => json!({"responses": responses, "error": describe(status)}),
    }
}

async fn exchange(
    transport: Transport,
    method: &MethodDescriptor,
    command: &Command,
    responses: &mut Vec<Value>,
) -> Result<(), Status> {
    let mut messages = Vec::new();
    for text in &command.requests {
        messages.push(parse(method.input(), text)?);
    }
    if !method.is_client_streaming() && messages.len() != 1 {
        return Err(Status::invalid_argument("the method takes one request"));
    }
    let mut request = Request::new(futures_util::stream::iter(messages));
    request.set_timeout(Duration::from_secs_f64(command.timeout));
    for (key, value) in &command.metadata {
        let malformed = |_| Status::invalid_argument("metadata that is none");
        let key: AsciiMetadataKey = key.parse().map_err(|_| malformed(()))?;
        let value: AsciiMetadataValue = value.parse().map_err(|_| malformed(()))?;
        request.metadata_mut().insert(key, value);
    }
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = PathAndQuery::try_from(path).expect("a path");
    let mut grpc = Grpc::new(transport)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let response = grpc.streaming(request, path, Dynamic(method.output())).await?;
    let mut stream: Streaming<DynamicMessage> = response.into_inner();
    if method.is_server_streaming() {
        answer(&command.id, json!({"started": true}));
    }
    while let Some(message) = stream.message().await? {
        responses.push(serde_json::to_value(message).map_err(|e| Status::internal(e.to_string()))?);
    }
    Ok(())
}

fn parse(descriptor: MessageDescriptor, text: &RawValue) -> Result<DynamicMessage, Status> {
    let mut reader = serde_json::Deserializer::from_str(text.get());
    DynamicMessage::deserialize(descriptor, &mut reader)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Returns an error in the form of the driver protocol.
pub(crate) fn describe(status: Status) -> Value {
    let cancelled = status.code() == Code::Cancelled && status.message() == "cancelled";
    let error = CallError::from(status);
    // Distinguishes a call that this driver cancelled from a broken connection.
    let code = if cancelled { Code::Cancelled } else { error.code };
    let mut found = Map::from_iter([
        ("code".to_owned(), name_of(code).into()),
        ("message".to_owned(), error.message.into()),
    ]);
    if !error.reason.is_empty() {
        found.insert("reason".into(), error.reason.into());
        found.insert("domain".into(), error.domain.into());
        found.insert("metadata".into(), json!(error.metadata));
    }
    if !error.fields.is_empty() {
        let fields: Vec<_> = error.fields.into_iter().map(|violation| violation.field).collect();
        found.insert("fields".into(), json!(fields));
    }
    if let Some(delay) = error.retry_delay {
        found.insert("retry_delay".into(), json!(delay.as_secs_f64()));
    }
    Value::Object(found)
}

/// gRPC's name of a code: `NotFound` is `NOT_FOUND`.
fn name_of(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A codec for messages of any type; the descriptor is that of the responses.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), from);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
