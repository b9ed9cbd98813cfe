"""The conformance driver of the Python client; tests/conformance/README.md says what a driver does."""
