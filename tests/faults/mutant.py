"""The `lightningstore` program with a shorter lease, or without a part of what the fault tests are to find missing.

The environment variable LEASE_SECONDS is the length of the lease, if it is set. MUTANT names the parts that are missing,
separated by commas: tests of the tests run such servers, and have to fail.
"""

from __future__ import annotations

import os

from lightningstore.service.cli.entry import main
from lightningstore.service.engine.consumers import Consumers
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.subscription import Item, Subscription
from lightningstore.service.rules.rows import ConsumerRow
from lightningstore.service.storage.postgres import commits
from lightningstore.service.storage.postgres.database import Database

#: What the fence of a commit compares, and what a mutant compares instead.
FENCES = {
    "no epoch check": ("n.epoch = $2 AND n.owner = $6", "n.epoch >= $2 AND $6 <> ''"),
    "no sequence check": (
        "c.seq = $3::bigint - 1",
        "c.seq = (SELECT max(seq) FROM ls_commits WHERE ns = $1)",
    ),
}


def mutate_fence(part: str) -> str:
    """Return the fence of a commit without a part."""
    right, wrong = FENCES[part]
    fence = commits.SQL["fence"]
    assert right in fence
    return fence.replace(right, wrong)


def _store_no_acknowledgements() -> None:
    remove = Consumers._remove

    def mutant(self: Consumers, item: Item) -> None:
        remove(self, item)
        self._committer.changes.removed_deliveries.pop()

    Consumers._remove = mutant  # type: ignore[method-assign]


def _store_no_cursors() -> None:
    row_of = Subscription.row

    def mutant(self: Subscription) -> ConsumerRow:
        row = row_of(self)
        row.record.after_completion_number = self.settings.after_completion_number
        return row

    Subscription.row = mutant  # type: ignore[method-assign]


def _mutate(part: str) -> None:
    if part == "no lease check":
        Engine.check_owned = lambda _: None  # type: ignore[method-assign]
    elif part == "no stored acknowledgements":
        _store_no_acknowledgements()
    elif part == "no stored cursors":
        _store_no_cursors()
    elif part in FENCES:
        commits.SQL["fence"] = mutate_fence(part)
    else:
        raise ValueError(f"MUTANT names {part!r}, which is no part")


if __name__ == "__main__":
    if "LEASE_SECONDS" in os.environ:
        defaults = Database.__init__.__kwdefaults__
        assert defaults is not None
        defaults["lease_seconds"] = float(os.environ["LEASE_SECONDS"])
    for missing in filter(None, os.environ["MUTANT"].split(",")):
        _mutate(missing)
    main()
