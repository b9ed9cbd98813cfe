"""The requests of calls and what their answers become, without I/O."""
