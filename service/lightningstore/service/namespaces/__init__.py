"""The namespaces of a server: which there are, and which are open."""
