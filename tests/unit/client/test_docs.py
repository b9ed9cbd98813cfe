"""The snippets of docs/clients/python.md, run as they are printed, in their order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .fakes import RealServer

PAGE = Path(__file__).parents[3] / "docs" / "clients" / "python.md"


def test_the_page_runs_as_printed(real: RealServer, tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 8
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        env={**os.environ, "LIGHTNINGSTORE_ADDRESS": real.address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    for number in range(7):
        assert f"{number} succeeded [{float(number)}]" in out
    assert "7 failed []" in out
    assert "8 finished, still open: []" in out
    assert "Failure(type='NonRetryable'" in out
    assert "['succeeded']" in out
    assert "['step']" in out
    assert "sqlite" in out
    assert "ERROR_REASON_ROLLOUT_NOT_FOUND {'rolloutId': 'ro-unknown'}" in out
