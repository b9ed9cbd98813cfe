"""Backup, restore, check and vacuum of files that no server has open: what is refused, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightningstore.service.errors import StorageUnusable
from lightningstore.service.storage import tools


@pytest.mark.parametrize(
    "use",
    [
        tools.check,
        tools.vacuum,
        lambda path: tools.backup(path, path.with_name("copy.db")),
        lambda path: tools.restore(path, path.with_name("new.db")),
    ],
    ids=["check", "vacuum", "backup", "restore"],
)
def test_file_that_is_missing_is_named_and_nothing_made(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    with pytest.raises(StorageUnusable, match=r"typo\.db: No such file"):
        use(tmp_path / "typo.db")
    assert list(tmp_path.iterdir()) == []
