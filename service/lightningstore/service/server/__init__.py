"""Builds a server from its configuration, and starts, drains and stops it."""
