"""How many files of the service a reader has to know to follow one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files_passed import measure

pytestmark = pytest.mark.asyncio

#: Counts that may fall and must not rise. Of both, three files are for namespaces: the router, and the limits that stores
#: share. Of AddSpans, three are for rewards in spans and one is for groups; of DequeueRollouts, three are for groups and
#: resources that are resolved at the claim.
LIMITS = {"DequeueRollouts": 27, "AddSpans": 29}


async def test_calls_run_through_no_more_files_than_they_did(tmp_path: Path) -> None:
    files = await measure(tmp_path)
    assert {call: names for call, names in files.items() if len(names) > LIMITS[call]} == {}
