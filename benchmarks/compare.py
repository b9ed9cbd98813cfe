"""Compare this checkout with another one: `python -m benchmarks.compare ../before`.

Each repetition measures both checkouts, one after the other, with the benchmark code and the
virtual environment (.venv) of each, so that a temporarily slow machine affects both. Prints the
median of each figure, and the ratio of this checkout to the other one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Figures: checkout to (row, figure) to one value a repetition.
Samples = dict[Path, dict[tuple[int, str], list[float]]]


def _measure(checkout: Path, options: list[str]) -> list[dict]:
    """Run the benchmarks of a checkout, and return their figures."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [str(checkout / ".venv/bin/python"), "-m", "benchmarks", *options]
        subprocess.run(
            [*command, "--reps", "1", "--output", str(output)],
            cwd=checkout,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(output.read_text())["figures"]


def main() -> int:
    """Measure both, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout, with a .venv of its own")
    parser.add_argument("--reps", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--seconds", default="1", help="duration of each loop (default: 1)")
    parser.add_argument("--scenario", nargs="+", default=["1", "2", "4", "5", "13"], help="rows")
    options = parser.parse_args()
    other = options.other.resolve()
    passed = ["--scenario", *options.scenario, "--seconds", options.seconds]
    samples: Samples = {other: defaultdict(list), ROOT: defaultdict(list)}
    better: dict[tuple[int, str], bool] = {}
    for repetition in range(options.reps):
        # The one that is measured first changes, since the machine may slow down within a repetition.
        for checkout in (other, ROOT) if repetition % 2 == 0 else (ROOT, other):
            print(f"repetition {repetition + 1} of {options.reps}: {checkout}", file=sys.stderr)
            for figure in _measure(checkout, passed):
                key = (figure["row"], figure["figure"])
                samples[checkout][key].append(figure["median"])
                better[key] = figure["at_least"]
    print("| row | figure | before | now | now ÷ before | lowest, highest of the repetitions |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key, after in samples[ROOT].items():
        if not (before := samples[other].get(key)):
            continue
        ratios = sorted(b / a for a, b in zip(before, after, strict=True) if a)
        medians = statistics.median(before), statistics.median(after)
        ratio = medians[1] / medians[0] if medians[0] else float("nan")
        worse = ratio < 0.95 if better[key] else ratio > 1.05
        spread = f"{ratios[0]:.2f}, {ratios[-1]:.2f}" if ratios else ""
        print(
            f"| {key[0]} | {key[1]} | {medians[0]:.4g} | {medians[1]:.4g} "
            f"| {ratio:.3f}{' (worse)' if worse else ''} | {spread} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
