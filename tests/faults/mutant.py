"""The `lightningstore` program without a part of what keeps several servers apart, which tests of the tests run.

The environment variable MUTANT names the part: "no lease check". Those that writes need are in tests/storage/test_postgres_failures.py.
"""

from __future__ import annotations

import os

from lightningstore.service.cli.entry import main
from lightningstore.service.engine.engine import Engine


def _mutate(part: str) -> None:
    if part == "no lease check":
        Engine._check_owned = lambda _: None  # type: ignore[method-assign]
    else:
        raise ValueError(f"MUTANT is {part!r}, which names no part")


if __name__ == "__main__":
    _mutate(os.environ["MUTANT"])
    main()
