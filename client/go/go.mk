# The Go client: included by the top Makefile, whose variables it uses.
GO ?= go
GO_BIN := $(CURDIR)/build/go-bin
# Generators and linter are pinned, for their output is compared; generators not newer than go.mod asks for.
PROTOC_GEN_GO := 1.36.10
PROTOC_GEN_GO_GRPC := 1.5.1
STATICCHECK := 0.8.2
# The race detector needs a C compiler.
GO_RACE = command -v $$($(GO) env CC) >/dev/null && echo -race || true
GO_MODULE := github.com/lightningstore/lightningstore/generated/go

.PHONY: go-proto go-check go-test go-driver go-cartpole

build/go-bin/stamp: client/go/go.mk
	mkdir -p $(GO_BIN)
	GOBIN=$(GO_BIN) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@v$(PROTOC_GEN_GO)
	GOBIN=$(GO_BIN) $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v$(PROTOC_GEN_GO_GRPC)
	touch $@

go-proto: build/otlp.binpb build/go-bin/stamp ## Generate generated/go from proto/
	rm -rf generated/go/lightningstore
	$(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I proto \
	    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
	    --plugin=protoc-gen-go=$(GO_BIN)/protoc-gen-go \
	    --plugin=protoc-gen-go-grpc=$(GO_BIN)/protoc-gen-go-grpc \
	    --go_out=generated/go --go_opt=module=$(GO_MODULE) \
	    --go-grpc_out=generated/go --go-grpc_opt=module=$(GO_MODULE) $(PROTOS)

go-check: ## Format and lint the Go client
	@found=$$(gofmt -l client/go generated/go); \
	if [ -n "$$found" ]; then echo "gofmt would change:"; echo "$$found"; exit 1; fi
	cd generated/go && $(GO) vet ./...
	cd client/go && $(GO) vet ./...
	cd client/go && $(GO) run honnef.co/go/tools/cmd/staticcheck@v$(STATICCHECK) ./...

go-test: .venv/stamp ## Test the Go client, including the programs of its README
	cd client/go && $(GO) test $$($(GO_RACE)) -timeout 5m ./...

go-driver: ## Build the conformance driver of the Go client
	mkdir -p build/conformance
	cd client/go && $(GO) build -buildvcs=false -o $(CURDIR)/build/conformance/go ./conformance

go-cartpole: ## Build the demo's runner in Go
	cd client/go && $(GO) build -buildvcs=false -o $(CURDIR)/build/cartpole/go ./examples/cartpole
