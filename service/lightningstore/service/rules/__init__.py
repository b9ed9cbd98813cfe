"""The rules of the contract: pure functions without clocks and I/O."""
