# The Rust client: included by the top Makefile, whose variables it uses.
CARGO ?= cargo
CARGO_RUST := $(CARGO) --locked
RUST_CONTRACT := client/rust/proto/lightningstore.binpb
# Messages and services of the contract and all that it imports, with comments, for those without protoc.
RUST_DESCRIBE = $(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I proto \
    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
    --include_imports --include_source_info
# Clippy in place of the compiler, as `cargo clippy` puts it, for what is built and tested all the same: `cargo clippy`
# itself would compile each dependency a second time. Where clippy is missing, only the check needs it.
RUST_LINTED = $(if $(shell clippy-driver --version 2>/dev/null),RUSTC_WORKSPACE_WRAPPER=clippy-driver \
    CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__)

.PHONY: rust-proto rust-check rust-test rust-driver

rust-proto: build/otlp.binpb ## Generate the descriptor set of the Rust client from proto/
	mkdir -p $(dir $(RUST_CONTRACT))
	$(RUST_DESCRIBE) -o $(RUST_CONTRACT) $(sort $(PROTOS))

rust-check: build/otlp.binpb ## Format and lint the Rust client
	$(RUST_DESCRIBE) -o build/rust.binpb $(sort $(PROTOS))
	@cmp build/rust.binpb $(RUST_CONTRACT) || { echo "proto/ has changed: run make rust-proto"; false; }
	cd client/rust && $(CARGO) fmt --all --check
	@clippy-driver --version >/dev/null
	cd client/rust && $(RUST_LINTED) $(CARGO_RUST) test --quiet -j2 -p lightningstore --no-run
	cd client/rust && $(RUST_LINTED) $(CARGO_RUST) test --quiet -j2 -p conformance --no-run

# The driver and its tests apart: the library is then built as users get it, without tonic's server, which its own
# tests need and which changes how tonic names errors.
rust-test: .venv/stamp ## Test the Rust client, including the programs of its README
	cd client/rust && $(RUST_LINTED) $(CARGO_RUST) test --quiet -j2 -p lightningstore
	cd client/rust && $(RUST_LINTED) $(CARGO_RUST) test --quiet -j2 -p conformance

rust-driver: ## Build the conformance driver of the Rust client
	mkdir -p build/conformance
	cd client/rust && $(RUST_LINTED) $(CARGO_RUST) build --quiet -j2 -p conformance
	cp client/rust/target/debug/conformance build/conformance/rust
