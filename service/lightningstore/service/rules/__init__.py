"""The rules of the contract: pure functions, free of clocks and I/O."""
