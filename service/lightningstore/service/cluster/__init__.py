"""Several servers that share their namespaces: which of them serves which."""
