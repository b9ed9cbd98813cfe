"""Access control: permissions, tokens, certificates."""
