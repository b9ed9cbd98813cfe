"""The SQLite back end: one file a store."""
