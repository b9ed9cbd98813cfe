# Everything sets up what it needs: python3 and make are enough.
PYTHON ?= python3
PY := .venv/bin/python
BIN := .venv/bin
PROTOC_PY := .venv-proto/bin/python
GENERATED := generated/python
PROTOS := $(wildcard proto/lightningstore/v1/*.proto)
# Stubs load on what is at least as new as what made them: the oldest tools, for the widest range.
GRPC_TOOLS := 1.66.2
# What others call a gRPC server with, as Go programs.
GRPCURL := 1.9.3
GHZ := 0.120.0
# The languages of the demo's runners.
RUNNERS ?= python
comma := ,
PIP := install --quiet --disable-pip-version-check --no-compile
# One pip fills all environments: to bring one takes each of them 6 s of processor time. And a new one, for that of Python
# 3.11 takes twice the time, most of it for versions that it does not install.
PIP_INTO = $(PY) -m pip --python $(1)/bin/python $(PIP)

.DEFAULT_GOAL := help
include tests/conformance/conformance.mk
.PHONY: help proto python-proto blocking serve test python-test python-core-test python-contract-test python-storage-test python-integration-test grpc-tools test-contract-night test-faults test-faults-store test-faults-clients test-cluster test-cluster-night check python-check format lint types imports buf drift compat newest readers demo bench bench-guard bench-peer clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/pip:
	$(PYTHON) -m venv .venv
	$(PY) -m pip $(PIP) "pip>=25"
	touch $@

.venv/stamp: pyproject.toml requirements.lock | .venv/pip
	$(PY) -m pip $(PIP) -r requirements.lock
	$(PY) -m pip $(PIP) --no-deps -e .
	touch $@

.venv-proto/stamp: Makefile | .venv/pip
	$(PYTHON) -m venv --without-pip .venv-proto
	$(call PIP_INTO,.venv-proto) grpcio-tools==$(GRPC_TOOLS) "setuptools<81" opentelemetry-proto==1.45.2
	touch $@

build/otlp.binpb: proto/otlp_set.py .venv-proto/stamp
	mkdir -p build
	$(PROTOC_PY) proto/otlp_set.py $@

proto: languages python-proto $(call goals,proto,go typescript rust) ## Generate generated/ from proto/, for each installed language

python-proto: .venv/stamp build/otlp.binpb
	rm -rf $(GENERATED)/lightningstore && mkdir -p $(GENERATED)
	$(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I proto \
	    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	    --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    --python_out=$(GENERATED) --grpc_python_out=$(GENERATED) \
	    --mypy_out=quiet:$(GENERATED) --mypy_grpc_out=quiet:$(GENERATED) $(PROTOS)
	find $(GENERATED) -name '*_pb2_grpc.py*' ! -name 'service_pb2_grpc.py*' ! -name 'namespace_pb2_grpc.py*' \
	    ! -name 'cluster_pb2_grpc.py*' -delete
	touch $(GENERATED)/lightningstore/v1/py.typed

serve: .venv/stamp ## Start the service on 127.0.0.1:4747 over ./lightningstore.db
	$(BIN)/lightningstore serve

# In this order `make -j3` has work for the cores from the beginning to the end: compilers, which take all they get, beside
# tests, which wait half of their time. The conformance suite needs what the compilers make.
test: languages $(call goals,test,rust) python-storage-test python-integration-test $(call goals,test,cpp) \
    python-contract-test $(call goals,test,java) python-core-test $(call goals,test,typescript go) agl-test console-test \
    conformance ## Run all tests of each installed language, and the conformance suite

python-test: python-storage-test python-integration-test python-contract-test python-core-test

python-core-test: .venv/stamp
	$(PY) -m pytest $(foreach part,storage integration contract faults console,--ignore tests/$(part))

python-contract-test: .venv/stamp
	$(PY) -m pytest tests/contract

python-storage-test: .venv/stamp
	$(PY) -m pytest tests/storage

python-integration-test: .venv/stamp $(if $(shell command -v go),grpc-tools)
	$(PY) -m pytest tests/integration

build/go-bin/grpcurl: Makefile
	GOBIN=$(GO_BIN) $(GO) install github.com/fullstorydev/grpcurl/cmd/grpcurl@v$(GRPCURL)
	touch $@

build/go-bin/ghz: Makefile
	GOBIN=$(GO_BIN) $(GO) install github.com/bojand/ghz/cmd/ghz@v$(GHZ)
	touch $@

grpc-tools: build/go-bin/grpcurl build/go-bin/ghz ## Build grpcurl and ghz, which the tests use; needs Go

test-contract-night: .venv/stamp ## Run the contract suite in full on each back end, in process and over gRPC (10 minutes)
	WAYS=sqlite-grpc,postgres-inprocess,postgres-grpc $(PY) -m pytest tests/contract

# What clients and networks do to one server; the other goal has all other files of one server. Each takes half of the time.
FAULTS_OF_CLIENTS := $(foreach name,clients exporters load network overload,tests/faults/test_$(name).py)

# In parts, for two cores.
test-faults: test-faults-store test-faults-clients test-cluster ## Run the fault tests (15 minutes; SCALE=1 for full size, 5 for a night)

test-faults-store: .venv/stamp
	$(PY) -m pytest tests/faults --ignore-glob 'tests/faults/test_cluster*' \
	    $(foreach file,$(FAULTS_OF_CLIENTS),--ignore $(file)) --scale $(or $(SCALE),0.2) -s

test-faults-clients: .venv/stamp
	$(PY) -m pytest $(FAULTS_OF_CLIENTS) --scale $(or $(SCALE),0.2) -s

test-cluster: .venv/stamp ## Kill servers of one database, and the database (4 minutes; SCALE=1: 200 and 20 times)
	$(PY) -m pytest tests/faults/test_cluster*.py --scale $(or $(SCALE),0.05) -s

test-cluster-night: .venv/stamp ## Kill five servers with fifty namespaces, and the database (MINUTES=60)
	$(PY) -m pytest tests/faults/test_cluster.py -k night --minutes $(or $(MINUTES),60) -s

check: languages $(call goals,check,$(CLIENTS)) $(if $(filter typescript,$(FOUND)),console-check) python-check agl-check ## Run all linters of each installed language

python-check: format lint types imports buf

format: .venv/stamp
	$(BIN)/ruff format --check .

lint: .venv/stamp
	$(BIN)/ruff check .

types: .venv/stamp
	$(BIN)/mypy
	$(BIN)/mypy tests/conformance client/python/conformance

imports: .venv/stamp
	$(BIN)/lint-imports --no-cache

fix: .venv/stamp ## Apply the automatic fixes of the linters
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The descriptor set of a folder of protos: buf cannot resolve OTLP's files without a network.
define describe
$(PROTOC_PY) -m grpc_tools.protoc --descriptor_set_in=build/otlp.binpb -I $(1) \
    -I $$($(PROTOC_PY) -c "import grpc_tools; print(grpc_tools.__path__[0] + '/_proto')") \
    --include_imports --include_source_info -o $(2) $$(cd $(1) && ls lightningstore/v1/*.proto)
endef

buf: .venv/stamp build/otlp.binpb ## Lint the contract and compare it with main's
	$(BIN)/buf format -d --exit-code proto
	$(call describe,proto,build/contract.binpb)
	$(BIN)/buf lint build/contract.binpb --config proto/buf.yaml
	@base=$$(git rev-parse -q --verify origin/main || true); \
	if [ "$$base" = "$$(git rev-parse -q --verify HEAD)" ]; then \
	    base=$$(git rev-parse -q --verify HEAD~1 || true); fi; \
	if [ -n "$$base" ] && git cat-file -e $$base:proto/lightningstore 2>/dev/null; then \
	    rm -rf build/main && mkdir -p build/main && git archive $$base proto | tar -x -C build/main && \
	    $(call describe,build/main/proto,build/main.binpb) && \
	    echo "buf breaking against $$base" && \
	    $(BIN)/buf breaking build/contract.binpb --against build/main.binpb --config proto/buf.yaml; \
	else echo "no earlier contract at hand: nothing to compare with"; fi

blocking: .venv/stamp ## Generate the blocking Python client from the asyncio one
	$(PY) client/python/make_blocking.py

drift: proto blocking $(if $(filter typescript,$(FOUND)),console) ## Fail if generated/, the blocking client or the built console is out of date
	@git status --porcelain generated client/python $(CONSOLE_BUILT) | tee build/drift; test ! -s build/drift

compat: .venv/stamp ## Test the client with the oldest and newest versions of its dependencies
	$(PY) tests/compat/run.py

# The unit tests alone: whatever an interpreter changes meets them. Left out is what looks at texts, or takes long for the
# many cases that it tries.
SAME_EVERYWHERE := tidy triplets_rules triplets_costly
newest: | .venv/pip ## Run the unit tests on the newest installed Python that pyproject.toml lists
	@newest=$$($(PYTHON) tests/compat/newest_python.py); \
	if [ -z "$$newest" ]; then echo "no Python here is newer than $$($(PYTHON) --version)"; exit; fi; \
	set -e; $$newest --version; $$newest -m venv --without-pip .venv-newest; \
	$(call PIP_INTO,.venv-newest) -r requirements.lock; \
	$(call PIP_INTO,.venv-newest) --no-deps -e .; \
	.venv-newest/bin/python -m pytest tests/unit --ignore tests/unit/client/test_docstrings.py \
	    $(foreach name,$(SAME_EVERYWHERE),--ignore tests/unit/test_$(name).py)

# It sees what .venv has, and adds the rest: pip takes 18 s of CPU for the packages of requirements.lock.
.venv-readers/stamp: .venv/stamp requirements-readers.lock
	$(PYTHON) -m venv --without-pip .venv-readers
	$(PY) -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" > \
	    $$(.venv-readers/bin/python -c "import site; print(site.getsitepackages()[0])")/tests.pth
	$(call PIP_INTO,.venv-readers) -r requirements.lock -r requirements-readers.lock
	touch $@

readers: .venv-readers/stamp ## Load exports with datasets, pandas, polars and duckdb, and send numpy values; installs 650 MB
	ALL_LIBRARIES=1 .venv-readers/bin/python -m pytest tests/unit/client/test_readers.py tests/unit/client/test_json_values.py tests/unit/client/test_samples.py tests/unit/client/test_sample_files.py

demo: .venv/stamp $(addsuffix -cartpole,$(filter go typescript,$(subst $(comma), ,$(RUNNERS)))) ## Train CartPole through the store, RUNNERS=python,go,typescript
	$(PY) -m pip $(PIP) -r requirements-demo.lock
	$(PY) examples/cartpole/train.py --runners $(RUNNERS)

bench: .venv/stamp ## Run the benchmarks, SCENARIO=name for one
	$(PY) -m benchmarks $(if $(SCENARIO),--scenario $(SCENARIO))

bench-guard: .venv/stamp ## Fail if calls or spans are half as fast, or the event loop is held (2 minutes)
	$(PY) -m benchmarks --quick

bench-peer: .venv/stamp ## Run the benchmarks with the store of agentlightning
	$(PY) -m benchmarks --peer $(if $(SCENARIO),--scenario $(SCENARIO))

clean: ## Remove everything that make created, except generated/
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

include $(wildcard client/*/*.mk) console/console.mk
