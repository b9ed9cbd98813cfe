"""A server that is killed at any step of making a store, or of migrating one, can be started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.lab import Lab

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["make", "migrate"])
def test_kill_at_any_step_leaves_a_store_that_opens(lab: Lab, stride: int, what: str) -> None:
    # Making a store takes 120 calls, migrating one 30.
    paces = str(4 * min(stride, 5) if what == "make" else min(stride, 5))
    command = [sys.executable, "-m", "tests.faults.steps", what, str(lab.db), paces]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **lab.breaking()},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    print(f"{what}: {done.stdout.strip()} kills")
    assert int(done.stdout) > 5
