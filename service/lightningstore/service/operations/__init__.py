"""The calls of the contract, one module a noun, and the operations that run on a timer."""
