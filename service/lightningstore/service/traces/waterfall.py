"""A trace as a picture: a line a span, its bar where its time is. SVG, alone or in a page of HTML. Pure.

Nothing in it runs or is fetched: no scripts, no fonts or styles from elsewhere. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from lightningstore.service.traces.texts import cells, cut_end, duration_text
from lightningstore.service.traces.timeline import Line, Timeline

ROW, TOP, MARGIN = 24, 44, 12
NAMES, BARS, NOTES = 380, 620, 330
#: Where the notes begin, behind the bars and the durations.
DURATION = 90
WIDTH = MARGIN + NAMES + BARS + NOTES + MARGIN
INDENT, DEEPEST = 14, 16
#: Width of a character of the monospaced font, in pixels.
CELL = 7.25
TICKS = 6

LIGHT = {
    "text": "#1f2933",
    "dim": "#65727f",
    "grid": "#e3e8ed",
    "zebra": "#f6f8fa",
    "back": "#ffffff",
    "span": "#8fa3b5",
    "call": "#2f7de1",
    "agent": "#7a5cd6",
    "reward": "#d99a00",
    "lost": "#c3ccd4",
    "wrong": "#d1373f",
}
DARK = {
    "text": "#e4e9ee",
    "dim": "#98a5b1",
    "grid": "#2c3641",
    "zebra": "#1b222a",
    "back": "#151a20",
    "span": "#62778b",
    "call": "#4d97f3",
    "agent": "#9a80ee",
    "reward": "#e6b032",
    "lost": "#46525e",
    "wrong": "#f0616a",
}


def _rules(colors: dict[str, str]) -> str:
    """Return the colours as CSS, without its variables, which not every viewer of SVG knows."""
    rules = [f".waterfall .{name} {{ fill: {color}; }}" for name, color in colors.items()]
    rules.append(f".waterfall line {{ stroke: {colors['grid']}; }}")
    rules.append(f".waterfall .error {{ stroke: {colors['wrong']}; stroke-width: 2; }}")
    return " ".join(rules)


FONT = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
STYLE = (
    f".waterfall text {{ font-family: {FONT}; font-size: 12px; white-space: pre; }} "
    ".waterfall .head { font-weight: 600; font-size: 13px; }\n"
    f"{_rules(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {_rules(DARK)} }}"
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 24px; font: 14px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 18px; overflow-wrap: anywhere; }}
dl {{ display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0 0 16px; }}
dt {{ font-size: 12px; opacity: .65; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>
{facts}
</dl>
{picture}
</body>
</html>
"""


def html(title: str, facts: Sequence[tuple[str, str]], timeline: Timeline) -> str:
    """Return a page with the picture, and what else is known by name above it. Texts are printable ones."""
    listed = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return PAGE.format(title=escape(title), facts=listed, picture=svg("", timeline))


def svg(title: str, timeline: Timeline) -> str:
    """Return the picture, under a title unless that is empty."""
    timeline = timeline.printable()
    shift = 26 if title else 0
    height = TOP + shift + ROW * len(timeline.lines) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="waterfall" '  # noqa: ISC004
        f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{escape(STYLE, quote=False)}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
    ]
    if title:
        room = int((WIDTH - 2 * MARGIN) / CELL) - 4
        parts.append(_text(MARGIN, 24, _fitted(title, room), "text head"))
    parts.append(f'<g transform="translate(0 {shift})">')
    bottom = TOP + ROW * len(timeline.lines)
    parts += [
        f'<rect class="zebra" y="{y}" width="{WIDTH}" height="{ROW}"/>'
        for y in range(TOP, bottom, 2 * ROW)
    ]
    parts += _axis(timeline.duration, bottom)
    for number, line in enumerate(timeline.lines):
        parts += _row(line, TOP + ROW * number, timeline.duration)
    parts.append("</g></svg>")
    return "\n".join(parts) + "\n"


def _axis(duration: int, bottom: int) -> Iterator[str]:
    left = MARGIN + NAMES
    step = _step(duration)
    for tick in range(0, duration + 1, step):
        x = left + BARS * tick / max(1, duration)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
        yield _text(x + 3, TOP - 14, duration_text(tick), "dim")


def _step(duration: int) -> int:
    """Return a round number of nanoseconds that divides a duration into a few parts."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * TICKS >= duration:
                return step * factor
        step *= 10


def _row(line: Line, y: int, total: int) -> Iterator[str]:
    title = "\n".join(
        [
            f"{line.name}  {duration_text(line.duration)}, at {duration_text(line.start)}",
            *line.notes,
            *([f"error: {line.error}"] if line.error else []),
            *(f"{failure}\n{failure.stack_trace}".rstrip() for failure in line.exceptions),
            *(f"{key}: {value}" for key, value in line.details),
        ]
    )
    yield f"<g><title>{escape(title)}</title>"
    # Not seen, but pointed at: the title shows wherever on the line.
    yield f'<rect y="{y}" width="{WIDTH}" height="{ROW}" fill="none" pointer-events="all"/>'
    indent = INDENT * min(line.depth, DEEPEST)
    deeper = "" if line.depth <= DEEPEST else f"{line.depth}│ "
    room = int((NAMES - indent - 8) / CELL)
    name = _fitted(deeper + line.name, room)
    middle = y + 16
    yield _text(MARGIN + indent, middle, name, "wrong" if line.error else "text")
    x = MARGIN + NAMES + BARS * line.start / max(1, total)
    width = max(2.0, BARS * line.duration / max(1, total))
    wrong = " error" if line.error else ""
    yield (
        f'<rect class="{line.kind}{wrong}" x="{x:.1f}" y="{y + 6}" width="{width:.1f}" '
        f'height="{ROW - 12}" rx="2"/>'
    )
    yield _text(MARGIN + NAMES + BARS + 14, middle, duration_text(line.duration), "dim")
    yield _notes(line, middle)
    yield "</g>"


def _notes(line: Line, y: int) -> str:
    room = int((NOTES - DURATION) / CELL) - 1
    words = [(note, "reward" if note.startswith("reward") else "text") for note in line.notes]
    if line.error:
        words.append((line.error, "wrong"))
    spans = []
    for word, style in words:
        fitted = _fitted(word, room)
        room -= cells(fitted) + 1
        if fitted:
            spans.append(f'<tspan class="{style}">{escape(fitted)}</tspan>')
    return f'<text x="{MARGIN + NAMES + BARS + DURATION}" y="{y}">{" ".join(spans)}</text>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{style}">{escape(text)}</text>'


def _fitted(text: str, room: int) -> str:
    """Return a text cut to a number of cells."""
    if room <= 0:
        return ""
    return cut_end(text, room)
