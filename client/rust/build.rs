//! Generates messages and stubs from the descriptor set of the contract, without protoc.

use std::path::Path;
use std::{env, error::Error, fmt::Write, fs};

use prost::Message;
use prost_types::{FileDescriptorSet, ServiceDescriptorProto};

const CONTRACT: &str = "proto/lightningstore.binpb";
const PACKAGE: &str = "lightningstore.v1";
/// OTLP's packages, whose messages are those of the crate that OpenTelemetry itself uses.
const OTLP: [&str; 3] = ["common", "resource", "trace"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CONTRACT}");
    let contract = FileDescriptorSet::decode(fs::read(CONTRACT)?.as_slice())?;
    let calls = calls(&contract)?;
    let mut builder = tonic_prost_build::configure()
        // Only the crate's own tests have a server.
        .server_mod_attribute(PACKAGE, "#[cfg(test)]")
        .generate_default_stubs(true)
        .skip_debug([".lightningstore.v1.LLM"]);
    for name in OTLP {
        builder = builder.extern_path(
            format!(".opentelemetry.proto.{name}.v1"),
            format!("::opentelemetry_proto::tonic::{name}::v1"),
        );
    }
    builder.compile_fds(contract)?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("calls.rs"), calls)?;
    Ok(())
}

/// Implements `Unary` for the request of each unary method.
fn calls(contract: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for file in contract.file.iter().filter(|file| file.package() == PACKAGE) {
        for service in &file.service {
            text += &calls_of(service, contract)?;
        }
    }
    Ok(text)
}

fn calls_of(
    service: &ServiceDescriptorProto,
    contract: &FileDescriptorSet,
) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for method in &service.method {
        if method.client_streaming() || method.server_streaming() {
            continue;
        }
        let (request, answer) = (short(method.input_type()), short(method.output_type()));
        let path = format!("/{PACKAGE}.{}/{}", service.name(), method.name());
        writeln!(text, "impl Unary for {request} {{\n    type Answer = {answer};")?;
        writeln!(text, "    const PATH: &'static str = {path:?};")?;
        if has_request_id(contract, request) {
            writeln!(text, "    fn identify(&mut self) {{ fill(&mut self.request_id); }}")?;
        }
        writeln!(text, "}}")?;
    }
    Ok(text)
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn has_request_id(contract: &FileDescriptorSet, message: &str) -> bool {
    let mut messages = contract.file.iter().flat_map(|file| &file.message_type);
    messages
        .any(|found| found.name() == message && found.field.iter().any(|field| field.name() == "request_id"))
}
