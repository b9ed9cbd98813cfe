"""Measures the store: `python -m benchmarks [--scenario NAME ...] [--peer] [--quick]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import contenders, picture, report
from benchmarks.bench import Bench
from benchmarks.scenarios import QUICK, SCENARIOS

RESULTS = Path(__file__).parent / "results"
NAMES = {name: row for row, (name, _) in SCENARIOS.items()}
#: Start-up comes before the history that is added to its file.
ORDER = sorted(SCENARIOS, key=lambda row: (row == 9, row))


def _row(text: str) -> int:
    if text.isdecimal() and int(text) in SCENARIOS:
        return int(text)
    if text in NAMES:
        return NAMES[text]
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(NAMES)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    shown = "; ".join(f"{row} {name}" for row, (name, _) in SCENARIOS.items())
    parser.add_argument(
        "--scenario", nargs="+", type=_row, metavar="NAME", help=f"only these rows: {shown}"
    )
    parser.add_argument("--peer", action="store_true", help=f"also {contenders.PEER}")
    parser.add_argument("--reps", type=int, default=None, help="repetitions, default 3")
    parser.add_argument("--seconds", type=float, default=None, help="of each loop, default 3")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="rows 1, 2, 4, 5 and a small 15 in two minutes; fails if one is far off its goal and record",
    )
    parser.add_argument(
        "--finished", type=int, default=1_000_000, help="finished rollouts of rows 9 and 11"
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    return parser.parse_args()


def main() -> int:
    """Run the selected scenarios and return the exit code."""
    given = _arguments()
    rows = frozenset(given.scenario or (QUICK if given.quick else SCENARIOS))
    if given.peer:
        contenders.install_peer()
    build = contenders.ROOT / "build"  # on a real disk, where a temporary folder may be in memory
    build.mkdir(exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder:
        bench = Bench(
            Path(folder),
            rows,
            repetitions=given.reps or (2 if given.quick else 3),
            seconds=given.seconds or (0.5 if given.quick else 3.0),
            peer=given.peer,
            finished=given.finished,
            running=max(100, given.finished // 100),
            quick=given.quick,
        )
        for row in ORDER:
            if row in rows:
                name, scenario = SCENARIOS[row]
                bench.say(f"row {row}: {name}")
                scenario(bench)
        found = report.as_json(bench, time.perf_counter() - started)
    report.show(bench)
    # latest.json is the whole table, or nothing: README's figures come from it.
    whole = rows >= set(SCENARIOS)
    path = given.output or (RESULTS / "latest.json" if whole else build / "bench-partial.json")
    report.save(found, path)
    print(f"written to {path}")
    if path.name == "latest.json":
        picture.draw(found, path.with_name("bars.png"))
    return _guard(bench) if given.quick else 0


def _guard(bench: Bench) -> int:
    """Compare a short run with goals and committed figures; returns the exit code."""
    committed = [
        figure
        for name in ("latest.json", "stalls.json")
        for figure in json.loads((RESULTS / name).read_text())["figures"]
    ]
    recorded = {(figure["row"], figure["figure"]): figure["median"] for figure in committed}
    off = [f for f in bench.figures if f.far_off(recorded.get((f.row, f.label)))]
    for figure in off:
        print(f"far off: row {figure.row}, {figure.label}: {figure.median:.2f}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
