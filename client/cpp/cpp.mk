# The C++ client: included by the top Makefile, whose variables it uses. client/cpp/apt.txt has what it takes.
CPP := client/cpp
CPP_BUILD := build/cpp
CPP_SOURCES = $(shell find $(CPP) -name "*.cc" -o -name "*.h")

.PHONY: cpp-build cpp-check cpp-test cpp-driver

# Everything, once: check, test and driver share it. Unoptimised, for it is the compiler that takes the time.
cpp-build: build/otlp.binpb
	cmake -S $(CPP) -B $(CPP_BUILD) -G Ninja -DLIGHTNINGSTORE_OTLP=$(CURDIR)/build/otlp.binpb \
	    -DCMAKE_COMPILE_WARNING_AS_ERROR=ON --log-level=WARNING
	cmake --build $(CPP_BUILD) -j 2

cpp-check: cpp-build ## Format and lint the C++ client
	clang-format --dry-run -Werror $(CPP_SOURCES)

cpp-test: .venv/stamp cpp-build ## Test the C++ client, including the programs of its README
	ctest --test-dir $(CPP_BUILD) -j 2 --output-on-failure

cpp-driver: cpp-build ## Build the conformance driver of the C++ client
	mkdir -p build/conformance
	cp $(CPP_BUILD)/driver build/conformance/cpp
