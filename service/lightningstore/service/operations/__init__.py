"""The calls of the contract, one module per noun, and the operations that run on timers."""
