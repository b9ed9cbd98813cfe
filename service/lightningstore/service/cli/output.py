"""What commands print: tables and details for people, JSON, YAML and tab-separated values for programs.

On a terminal a list is a table as wide as the terminal. Elsewhere it is tab-separated values without a heading, as
those of gh: whole texts, times as RFC 3339, plain numbers. The number of records left out goes to stderr.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource
from lightningstore.service.cli import table, yaml
from lightningstore.service.cli.describe import described, flat
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.units import count

FORMATS = ("table", "wide", "json", "jsonl", "yaml")
#: Those that print records and not rows.
DOCUMENTS = ("json", "jsonl", "yaml")
_COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "timeout": "red",
    "unresponsive": "red",
    "error": "red",
    "cancelled": "magenta",
    "running": "cyan",
    "busy": "cyan",
}


def options() -> list[click.Parameter]:
    """Return the options of a command that prints what a store has."""
    return [
        click.Option(
            ["-o", "--output", "format"],
            type=click.Choice(FORMATS),
            help="Output format. Default: a table on a terminal, tab-separated values elsewhere.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Same as -o json."),
        click.Option(["--wide"], is_flag=True, help="Same as -o wide: all columns, nothing cut."),
        click.Option(
            ["--color/--no-color"],
            default=None,
            help="Colour the output. Default: on a terminal, unless NO_COLOR is set.",
        ),
    ]


class NothingYet(click.ClickException):
    """There is nothing to show yet; --watch waits for it."""


@dataclass(frozen=True)
class Listing:
    """A list of records of one kind."""

    #: "rollout".
    noun: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    #: The records as JSON values, parallel to the rows.
    records: Sequence[Any]
    #: What follows the number on a terminal: "newest first".
    note: str = ""
    #: Whether there are more than these, and returns how many in all where the server counts them.
    is_cut: bool = False
    total: Callable[[], int] | None = None


@dataclass(frozen=True)
class Details:
    """All of one record."""

    record: dict[str, Any]
    #: Whether it will not change any more.
    is_final: bool = False
    #: What tables and tab-separated values show; None: the record.
    shown: dict[str, Any] | None = None


class Output:
    """Prints in the format that the options of a command ask for."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Take the options out of the parameters of a command."""
        form: str | None = given.pop("format", None)
        as_json, wide = given.pop("as_json", False), given.pop("wide", False)
        colour: bool | None = given.pop("color", None)
        if sum((form is not None, as_json, wide)) > 1:
            raise click.UsageError("-o, --json and --wide exclude each other")
        self.is_terminal = sys.stdout.isatty()
        self.format = "json" if as_json else "wide" if wide else form
        if colour is None:
            colour = self.is_terminal and not os.environ.get("NO_COLOR")
            colour = colour and os.environ.get("TERM") != "dumb"
        self.is_coloured = bool(colour)
        #: Columns of the last list for which the terminal was too narrow.
        self.left_out: list[str] = []

    @property
    def is_for_people(self) -> bool:
        """Whether a table or details are printed."""
        return self.format in ("table", "wide") or (self.format is None and self.is_terminal)

    def json(self, value: Any) -> None:
        """Print one document of JSON or YAML, or for jsonl one line for each item of a list."""
        if self.format == "jsonl":
            for item in value if isinstance(value, list) else [value]:
                click.echo(json.dumps(item, ensure_ascii=False, separators=(",", ":")))
        elif self.format == "yaml":
            click.echo("\n".join(yaml.lines(value)))
        else:
            click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def list(self, listing: Listing) -> None:
        """Print a list."""
        if self.format in DOCUMENTS:
            self.json(list(listing.records))
        else:
            for line in self.lines(listing):
                self._echo(line)
        # A program that reads the list cannot see that it is only a part. Whoever gave the limit knows it.
        source = click.get_current_context().get_parameter_source("limit")
        is_partial = listing.is_cut and source is ParameterSource.DEFAULT
        if is_partial or (self.is_terminal and self.is_for_people):
            click.echo(footer(listing, self.left_out), err=True)

    def lines(self, listing: Listing) -> Iterator[str]:
        """Yield the lines of a list, its footer left out. Fills `left_out`."""
        self.left_out.clear()
        rows = [[Cell.of(value) for value in row] for row in listing.rows]
        if not self.is_for_people:
            shown = [n for n, column in enumerate(listing.columns) if not column.wide]
            yield from table.tab_separated([[row[n] for n in shown] for row in rows])
        elif rows:
            if self.format == "wide":
                yield from table.aligned(listing.columns, rows, None, self._painted)
                return
            shown = [n for n, column in enumerate(listing.columns) if not column.wide]
            columns = [listing.columns[n] for n in shown]
            kept = [[row[n] for n in shown] for row in rows]
            yield from table.aligned(columns, kept, terminal_width(), self._painted, self.left_out)

    def details(self, details: Details) -> None:
        """Print all of one record."""
        if self.format in DOCUMENTS:
            self.json(details.record)
            return
        for line in self.detail_lines(details):
            self._echo(line)

    def detail_lines(self, details: Details) -> Iterator[str]:
        """Yield the lines of details."""
        shown = details.record if details.shown is None else details.shown
        if self.is_for_people:
            yield from described(shown)
        else:
            yield from (f"{key}\t{value}" for key, value in flat(shown))

    def show(self, found: Listing | Details) -> None:
        """Print a list or details."""
        if isinstance(found, Listing):
            self.list(found)
        else:
            self.details(found)

    def _echo(self, line: str) -> None:
        click.echo(line, color=self.is_coloured)

    def _painted(self, column: str, text: str) -> str:
        if not self.is_coloured:
            return text
        if column == "heading":
            return click.style(text, bold=True)
        colour = _COLOURS.get(text.strip()) if column == "STATUS" else None
        return click.style(text, fg=colour) if colour else text


def footer(listing: Listing, left_out: Sequence[str] = ()) -> str:
    """Return what is said below a list: 50 of 12,345 rollouts, newest first; 1 column hidden (--wide)."""
    number = len(listing.rows)
    if not number:
        return f"no {count(0, listing.noun).removeprefix('0 ')}"
    text = count(number, listing.noun)
    if listing.is_cut and listing.total is not None:
        text = f"{number:,} of {count(listing.total(), listing.noun)}"
    if listing.note:
        text = f"{text}, {listing.note}"
    if listing.is_cut and listing.total is None:
        text += "; --limit shows more"
    if left_out:
        text += f"; {count(len(left_out), 'column')} hidden (--wide)"
    return text


def terminal_width() -> int:
    """Return the width of the terminal, also where stdout is a pipe into a pager; 80 if there is none."""
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            columns = os.get_terminal_size(stream.fileno()).columns if stream else 0
        except (OSError, ValueError):
            continue
        if columns and not os.environ.get("COLUMNS"):
            return columns
    return shutil.get_terminal_size((80, 24)).columns
