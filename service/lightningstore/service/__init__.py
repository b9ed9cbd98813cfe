"""The lightningstore server."""
