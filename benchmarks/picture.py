"""Bar chart for the README: `python -m benchmarks.picture [RESULTS.json] [PICTURE.png]`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
#: What is shown: title, and for each contender the callers, the part and what an item counts for.
BARS: list[tuple[str, dict[str, tuple[int, str, float]]]] = [
    ("enqueue\ncalls/s", dict.fromkeys(("peer", "sqlite", "memory"), (64, "enqueue", 1))),
    ("claim\ncalls/s", dict.fromkeys(("peer", "sqlite", "memory"), (64, "claim", 1))),
    ("report\ncalls/s", dict.fromkeys(("peer", "sqlite", "memory"), (64, "update", 1))),
    (
        "spans\nper second",
        {
            "peer": (8, "export 512", 1),
            "sqlite": (8, "ingest 100", 1),
            "memory": (8, "ingest 100", 1),
        },
    ),
    (
        "queries of\n1,000 spans/s",
        dict.fromkeys(("peer", "sqlite", "memory"), (1, "query 1000", 1 / 1000)),
    ),
    ("full lives\nper second", dict.fromkeys(("peer", "sqlite"), (16, "life", 1))),
]
LOOKS = {
    "peer": ("agentlightning 0.3.0, memory", "#b8b8b8"),
    "sqlite": ("lightningstore, SQLite, full durability", "#1f5fa8"),
    "memory": ("lightningstore, memory", "#8ebbe8"),
}


def draw(found: dict[str, Any], path: Path) -> bool:
    """Draw what was measured; returns whether that could be done, and says why if not."""
    values = _values(found["trials"])
    bars = []
    for title, what in BARS:
        heights = {
            kind: values[kind, callers, part] * weight
            for kind, (callers, part, weight) in what.items()
            if (kind, callers, part) in values
        }
        if heights:
            bars.append((title, heights))
    if not bars:
        print("no picture: none of the scenarios that it shows was run", file=sys.stderr)
        return False
    try:
        import matplotlib as mpl
    except ImportError:
        print(
            "no picture: matplotlib is missing; pip install 'lightningstore[demo]'", file=sys.stderr
        )
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.2), dpi=160)
    width = 0.8 / len(LOOKS)
    for place, (kind, (label, colour)) in enumerate(LOOKS.items()):
        shown = [(x, heights[kind]) for x, (_, heights) in enumerate(bars) if kind in heights]
        if not shown:
            continue
        xs = [x + (place - 1) * width for x, _ in shown]
        drawn = axes.bar(xs, [h for _, h in shown], width * 0.94, label=label, color=colour)
        axes.bar_label(drawn, [_short(h) for _, h in shown], fontsize=8, padding=1)
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 3)
    axes.set_xticks(range(len(bars)), [title for title, _ in bars], fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    machine = found["machine"]
    axes.set_title(
        f"Higher is better, log scale; server and load share {machine['cores']} cores",
        fontsize=9,
        loc="left",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return True


def _values(trials: list[dict[str, Any]]) -> dict[tuple[str, int, str], float]:
    """Return items a second, medians, by contender, callers and part."""
    rates: dict[tuple[str, int, str], list[float]] = {}
    for trial in trials:
        for name, part in trial["parts"].items():
            if "cpu_seconds" in part and not trial.get("note"):
                key = (trial["kind"], trial["job"]["callers"], name)
                rates.setdefault(key, []).append(part["items"] / part["seconds"])
    return {key: statistics.median(found) for key, found in rates.items()}


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    source = given[0] if given else RESULTS / "latest.json"
    target = given[1] if len(given) > 1 else RESULTS / "bars.png"
    sys.exit(0 if draw(json.loads(source.read_text()), target) else 1)
