"""The live state of one store: memory, group commit, waiting."""
