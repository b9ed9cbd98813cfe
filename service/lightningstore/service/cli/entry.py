"""The `lightningstore` command, which the client alone cannot run."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what is missing."""
    try:
        from lightningstore.service.cli.main import main as run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lightningstore"):
            raise
        sys.exit(
            f"lightningstore: the server is not installed ({error.name} is missing): "
            "pip install 'lightningstore[server]'"
        )
    run()
