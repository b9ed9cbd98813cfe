"""`--watch`: a list or details again and again; on a terminal in place, elsewhere the lines that are new."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import click
from lightningstore.service.cli.output import DOCUMENTS, Details, Listing, Output, footer
from lightningstore.service.traces.texts import cut_end

INTERVAL_SECONDS = 1.0
#: To the top left, and everything below it gone.
_CLEAR = "\x1b[H\x1b[J"

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
        found = fetch()
        if in_place:
            _redraw(output, found)
        elif output.format == "jsonl":
            records = found.records if isinstance(found, Listing) else [found.record]
            for record in changes.of(records):
                output.json([record])
        else:
            lines = (
                output.lines(found) if isinstance(found, Listing) else output.detail_lines(found)
            )
            for line in changes.of(lines):
                click.echo(line)
        sys.stdout.flush()
        if isinstance(found, Details) and found.is_final:
            return
        time.sleep(INTERVAL_SECONDS)


class Changes:
    """Tells which of some items were not there the last time."""

    def __init__(self) -> None:
        self._before: set[str] = set()

    def of(self, items: Iterable[object]) -> Iterator[object]:
        """Yield the items that are new or other than the last time."""
        now = {str(item): item for item in items}
        yield from [item for key, item in now.items() if key not in self._before]
        self._before = set(now)


def _redraw(output: Output, found: Listing | Details) -> None:
    columns, rows = shutil.get_terminal_size()
    lines = list(output.lines(found) if isinstance(found, Listing) else output.detail_lines(found))
    below = footer(found) if isinstance(found, Listing) else ""
    if isinstance(found, Listing):
        lines = lines[: max(1, rows - 2)]
    click.echo(_CLEAR + "\n".join([*lines, cut_end(below, columns)]), color=output.is_coloured)
