"""The calls of the contract over one back end, and what runs on a timer."""
