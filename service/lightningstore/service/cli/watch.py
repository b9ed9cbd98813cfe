"""`--watch`: a list or details again and again; on a terminal in place, elsewhere the lines that are new."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import click
from lightningstore.service.cli.output import (
    DOCUMENTS,
    Details,
    Listing,
    NothingYet,
    Output,
    footer,
)
from lightningstore.service.cli.table import Cell
from lightningstore.service.traces.texts import cut_end

INTERVAL_SECONDS = 1.0
#: To the top left, and everything below it gone.
_CLEAR = "\x1b[H\x1b[J"
_AGE = re.compile(r" \(\S+ ago\)$")
_Item = TypeVar("_Item")

option = click.Option(
    ["-w", "--watch"],
    is_flag=True,
    help="Look again every second until Ctrl-C; details end with their rollout. "
    "Outside of a terminal, print what has changed.",
)


def follow(output: Output, fetch: Callable[[], Listing | Details]) -> None:
    """Show what `fetch` returns until it is final. Raises click.UsageError for formats of one document."""
    if output.format in DOCUMENTS and output.format != "jsonl":
        raise click.UsageError(f"--watch prints lines: -o jsonl instead of -o {output.format}")
    in_place = output.is_terminal and output.is_for_people
    changes = Changes()
    while True:
        found = _fetched(fetch, in_place=in_place, changes=changes)
        if found is None:
            pass
        elif in_place:
            _redraw(output, found)
        elif output.format == "jsonl":
            records = found.records if isinstance(found, Listing) else [found.record]
            for record in changes.of((str(record), record) for record in records):
                output.json([record])
        else:
            for line in changes.of(keyed(output, found)):
                click.echo(line)
        sys.stdout.flush()
        if isinstance(found, Details) and found.is_final:
            return
        time.sleep(INTERVAL_SECONDS)


def _fetched(
    fetch: Callable[[], Listing | Details], *, in_place: bool, changes: Changes
) -> Listing | Details | None:
    """Return what there is to show; None, once with a line on stderr, if there is nothing yet."""
    try:
        return fetch()
    except NothingYet as nothing:
        for line in changes.of([(nothing.message, nothing.message)]):
            click.echo(f"{_CLEAR if in_place else ''}{line}; waiting", err=True)
        return None


def keyed(output: Output, found: Listing | Details) -> Iterator[tuple[str, str]]:
    """Yield the lines to print, each with what it says apart from ages and durations until now."""
    if isinstance(found, Details):
        for line in output.detail_lines(found):
            yield _AGE.sub("", line), line
        return
    lines = list(output.lines(found))
    rows = [[Cell.of(value) for value in row] for row in found.rows]
    for line in lines[: len(lines) - len(rows)]:
        yield found.noun, line  # the heading, once: its widths change with the rows
    for line, row in zip(lines[len(lines) - len(rows) :], rows, strict=True):
        yield "\t".join(cell.raw for cell in row if not cell.is_running), line


class Changes:
    """Tells which of some items were not there the last time."""

    def __init__(self) -> None:
        self._before: set[str] = set()

    def of(self, items: Iterable[tuple[str, _Item]]) -> Iterator[_Item]:
        """Yield the items whose key is new or other than the last time."""
        now = dict(items)
        yield from [item for key, item in now.items() if key not in self._before]
        self._before = set(now)


def _redraw(output: Output, found: Listing | Details) -> None:
    columns, rows = shutil.get_terminal_size()
    lines = list(output.lines(found) if isinstance(found, Listing) else output.detail_lines(found))
    below = footer(found, output.left_out) if isinstance(found, Listing) else ""
    if isinstance(found, Listing):
        lines = lines[: max(1, rows - 2)]
    click.echo(_CLEAR + "\n".join([*lines, cut_end(below, columns)]), color=output.is_coloured)
