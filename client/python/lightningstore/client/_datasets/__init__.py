"""Finished rollouts outside of a store: which are exported, and their files."""
