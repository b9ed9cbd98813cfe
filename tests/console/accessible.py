"""What axe finds on a page, by the rules of WCAG 2.2 AA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page

AXE = Path(__file__).parents[2] / "console" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page) -> list[str]:
    """Return what axe finds, each with the element and how to repair it."""
    if not AXE.exists() and not os.environ.get("REQUIRE_ALL"):
        pytest.skip("no axe-core: npm ci in console/ installs it")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    result = page.evaluate("tags => axe.run({runOnly: tags})", RULES)
    return [
        f"{found['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for found in result["violations"]
        for node in found["nodes"]
    ]
