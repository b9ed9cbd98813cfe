"""The command line: `lightningstore serve`, views of a running server, files and tokens."""
