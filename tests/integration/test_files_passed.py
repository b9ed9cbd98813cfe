"""How many files of the service a reader has to know to follow one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files_passed import measure

pytestmark = pytest.mark.asyncio

#: Counts that may fall and must not rise. Three files are for namespaces: the router, and the limits that stores share.
LIMITS = {"DequeueRollouts": 24, "AddSpans": 25}


async def test_calls_run_through_no_more_files_than_they_did(tmp_path: Path) -> None:
    files = await measure(tmp_path)
    assert {call: names for call, names in files.items() if len(names) > LIMITS[call]} == {}
