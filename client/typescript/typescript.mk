# The TypeScript client: included by the Makefile at the repository's root.
TS := client/typescript
TS_GENERATED := generated/typescript
TS_OTLP := $(foreach p,common/v1/common resource/v1/resource trace/v1/trace \
    collector/trace/v1/trace_service,opentelemetry/proto/$(p).proto)

# Everything is compiled to one folder, in which the compiler finds what has not changed since the goal before.
.PHONY: typescript-check typescript-test typescript-driver typescript-proto typescript-cartpole

$(TS)/node_modules/.package-lock.json: $(TS)/package.json $(TS)/package-lock.json
	cd $(TS) && npm ci --no-fund --no-audit
	touch $@

typescript-proto: $(TS)/node_modules/.package-lock.json build/otlp.binpb .venv/stamp ## Generate generated/typescript from proto/
	rm -rf $(TS_GENERATED) && mkdir -p $(TS_GENERATED)
	$(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I proto \
	    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
	    -I $$($(PY) -c "import pathlib, google.rpc.status_pb2 as s; print(pathlib.Path(s.__file__).parents[2])") \
	    --plugin=protoc-gen-es=$(TS)/node_modules/.bin/protoc-gen-es \
	    --es_out=$(TS_GENERATED) --es_opt=target=ts,import_extension=js \
	    $(PROTOS) $(TS_OTLP) google/rpc/status.proto google/rpc/error_details.proto

typescript-check: $(TS)/node_modules/.package-lock.json ## Format, lint and type-check the TypeScript client
	cd $(TS) && npm run check

typescript-test: $(TS)/node_modules/.package-lock.json .venv/stamp ## Test the TypeScript client
	cd $(TS) && npm test

typescript-driver: $(TS)/node_modules/.package-lock.json ## Build the conformance driver at build/conformance/typescript
	cd $(TS) && npm run --silent compile
	mkdir -p build/conformance
	printf '#!/bin/sh\nexec node "%s" "$$@"\n' "$(CURDIR)/$(TS)/build/all/driver/main.js" > build/conformance/typescript
	chmod +x build/conformance/typescript

typescript-cartpole: $(TS)/node_modules/.package-lock.json ## Build the demo's runner in TypeScript
	cd $(TS) && npm run --silent compile
