"""Who may call what: permissions, tokens, certificates."""
