# The Rust client: included by the top Makefile, whose variables it uses.
CARGO ?= cargo
CARGO_RUST := $(CARGO) --locked
RUST_CONTRACT := client/rust/proto/lightningstore.binpb
# Messages and services of the contract and all that it imports, with comments, for those without protoc.
RUST_DESCRIBE = $(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I proto \
    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
    --include_imports --include_source_info

.PHONY: rust-proto rust-check rust-test rust-driver

rust-proto: build/otlp.binpb ## Generate the descriptor set of the Rust client from proto/
	mkdir -p $(dir $(RUST_CONTRACT))
	$(RUST_DESCRIBE) -o $(RUST_CONTRACT) $(sort $(PROTOS))

rust-check: build/otlp.binpb ## Format and lint the Rust client
	$(RUST_DESCRIBE) -o build/rust.binpb $(sort $(PROTOS))
	@cmp build/rust.binpb $(RUST_CONTRACT) || { echo "proto/ has changed: run make rust-proto"; false; }
	cd client/rust && $(CARGO) fmt --all --check
	cd client/rust && $(CARGO_RUST) clippy --quiet -j2 --workspace --all-targets -- -D warnings

# The driver and its tests apart: the library is then built as users get it, without tonic's server, which its own
# tests need and which changes how tonic names errors.
rust-test: .venv/stamp ## Test the Rust client, including the programs of its README
	cd client/rust && $(CARGO_RUST) test --quiet -j2 -p lightningstore
	cd client/rust && $(CARGO_RUST) test --quiet -j2 -p conformance

rust-driver: ## Build the conformance driver of the Rust client
	mkdir -p build/conformance
	cd client/rust && $(CARGO_RUST) build --quiet -j2 -p conformance
	cp client/rust/target/debug/conformance build/conformance/rust
