"""Tables: one line a row, as wide as the terminal, or tab-separated values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from lightningstore.service.traces.texts import ELLIPSIS, cells, cut_end, cut_middle, printable

GAP = 2
EMPTY = "-"
#: Narrowest that a column gets before columns are left out, by kind. The first column gets more.
NARROWEST = {"id": 12, "text": 12}
FIRST_NARROWEST = 20

Colour = Callable[[str, str], str]


@dataclass(frozen=True)
class Cell:
    """What a row has in a column: for a person, and for a program."""

    #: What a table shows.
    text: str
    #: What stands between tabs.
    raw: str
    #: Whether it is a duration until now, which is another one at every look.
    is_running: bool = False

    @classmethod
    def of(cls, value: Any) -> Cell:
        """Return the cell of a plain value."""
        if isinstance(value, Cell):
            return value
        text = "" if value is None else printable(str(value))
        return cls(text, text)


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    #: "id": cut in the middle; "text": cut at its end; "fixed": never cut; "number": never cut, to the right.
    kind: str = "fixed"
    #: Shown by --wide alone.
    wide: bool = False
    #: Which columns are left out first where the terminal is too narrow: the highest rank; 0: never.
    rank: int = 1
    #: Narrowest that it gets before columns are left out; 0: by its kind.
    least: int = 0


def tab_separated(rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Yield the rows as lines of tab-separated values; printable cells hold no tab and no line break."""
    for row in rows:
        yield "\t".join(cell.raw for cell in row)


def aligned(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    width: int | None,
    colour: Colour | None = None,
    left_out: list[str] | None = None,
) -> Iterator[str]:
    """Yield the heading and the rows, one line each, within `width` cells; None: as wide as they are.

    Within a width, columns in which no row has a value are left out; then the widest columns of ids and texts
    are cut, and last whole columns are left out by their rank; their names are added to `left_out`.
    """
    shown = list(range(len(columns)))
    if width is not None:
        shown = [n for n in shown if not columns[n].rank or any(row[n].text for row in rows)]
    widths = {n: cells(columns[n].name) for n in shown}
    for row in rows:
        for n in shown:
            widths[n] = max(widths[n], cells(row[n].text or EMPTY))
    if width is not None:
        _fit(columns, widths, width)
        if left_out is not None:
            left_out += [columns[n].name for n in shown if n not in widths]
    last = max(widths)
    heading = "".join(
        _padded(columns[n], columns[n].name, room, last=n == last) for n, room in widths.items()
    )
    yield colour("heading", heading.rstrip()) if colour else heading.rstrip()
    texts = {n: _cut(columns[n], [row[n].text or EMPTY for row in rows], widths[n]) for n in widths}
    for at in range(len(rows)):
        line = []
        for n, room in widths.items():
            padded = _padded(columns[n], texts[n][at], room, last=n == last)
            line.append(colour(columns[n].name, padded) if colour else padded)
        yield "".join(line).rstrip()


def _padded(column: Column, text: str, room: int, *, last: bool) -> str:
    blanks = " " * (room - cells(text))
    gap = "" if last else " " * GAP
    return f"{blanks}{text}{gap}" if column.kind == "number" else f"{text}{blanks}{gap}"


def _cut(column: Column, texts: Sequence[str], room: int) -> list[str]:
    return cut_ids(texts, room) if column.kind == "id" else [cut_end(text, room) for text in texts]


def cut_ids(ids: Sequence[str], room: int) -> list[str]:
    """Return ids in at most `room` cells, cut so that different ones stay different where that is possible.

    Each loses its middle. Those that then look alike show the part in which they differ instead.
    """
    alike: dict[str, set[str]] = {}
    for one in ids:
        alike.setdefault(cut_middle(one, room), set()).add(one)
    found = {}
    for cut, whole in alike.items():
        for one in whole:
            found[one] = cut if len(whole) == 1 else _around(one, _common(whole), room)
    return [found[one] for one in ids]


def _common(texts: AbstractSet[str]) -> int:
    """Return how many characters different texts have in common at their beginning."""
    first, last = min(texts), max(texts)
    return next((at for at, c in enumerate(first) if c != last[at : at + 1]), len(first))


def _around(text: str, at: int, room: int) -> str:
    """Return a text cut to its beginning and to what is around a character."""
    while at and text[at - 1].isalnum() and at > 1:
        at -= 1  # a number is shown whole
    head = min(4, max(0, room - 8))
    start = min(at, max(head, len(text) - (room - head - 1)))
    return text[:head] + ELLIPSIS + cut_end(text[start:], room - head - 1)


def _fit(columns: Sequence[Column], widths: dict[int, int], width: int) -> None:
    """Make the columns narrower until they fit, or leave some out."""
    while True:
        excess = sum(widths.values()) + GAP * (len(widths) - 1) - width
        if excess <= 0:
            return
        spare = {n: room - _least(columns[n], room) for n, room in widths.items()}
        if sum(spare.values()) >= excess:
            for _ in range(excess):
                n = max(spare, key=spare.__getitem__)
                widths[n] -= 1
                spare[n] -= 1
            return
        optional = [n for n in widths if columns[n].rank]
        if not optional:
            for n, room in widths.items():  # the narrowest of terminals
                widths[n] = min(room, max(1, width // len(widths) - GAP))
            return
        del widths[max(optional, key=lambda n: (columns[n].rank, n))]


def _least(column: Column, room: int) -> int:
    least = column.least or NARROWEST.get(column.kind, room)
    if column.kind == "id" and not column.rank:
        least = FIRST_NARROWEST
    return min(room, max(least, cells(column.name)))
