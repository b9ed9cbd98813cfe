"""The source of the figures in the README: `python -m benchmarks --help`."""
