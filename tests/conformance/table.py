"""The table language × scenario, and its place in docs/clients.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.conformance.languages import Language
from tests.conformance.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs/clients.md"
BEGIN = "<!-- made by tests/conformance/run.py --write -->"
END = "<!-- end -->"

OK, LEFT_OUT, FAILED = "✓", "–", "✗"

#: What came of a scenario in a language.
Cells = Mapping[tuple[str, str], str]


def join(outcomes: Iterable[str]) -> str:
    """Return what several runs of a scenario in a language come to; of none: nothing."""
    found = set(outcomes)
    return next((word for word in (FAILED, LEFT_OUT, OK) if word in found), "")


def render(scenarios: Sequence[Scenario], languages: Sequence[Language], cells: Cells) -> str:
    """Return the table in Markdown."""
    lines = [
        "| scenario | " + " | ".join(language.title for language in languages) + " |",
        "| --- |" + " :-: |" * len(languages),
    ]
    for scenario in scenarios:
        title = f"**{scenario.name.replace('_', ' ')}** {scenario.description}"
        found = [cells.get((scenario.name, language.name), "") for language in languages]
        lines.append(f"| {title} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def parse(text: str, languages: Sequence[Language]) -> dict[tuple[str, str], str]:
    """Return the cells of a table that `render` made."""
    cells = {}
    for line in text.splitlines():
        name = re.match(r"\| \*\*(.+?)\*\*", line)
        if name is not None:
            found = [word.strip() for word in line.strip("|").split("|")[-len(languages) :]]
            for language, cell in zip(languages, found, strict=True):
                cells[name[1].replace(" ", "_"), language.name] = cell
    return cells


def current(page: Path = PAGE) -> str:
    """Return the table that the page has. Raises ValueError without its marks."""
    return _split(page)[1]


def write(table: str, page: Path = PAGE) -> None:
    """Put a table between the marks of the page. Raises ValueError without them."""
    before, _, after = _split(page)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _split(page: Path) -> tuple[str, str, str]:
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    return before, table.strip("\n"), after
