"""Rows 4, 5, 6, 7, 10 and 12: spans in, out, in memory and in the file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, Samples, Trial, rate
from benchmarks.scenarios.calls import beside_peer

STREAMS = 8
#: Spans per second that preparations allow for, by contender.
MOST = {"sink": 1_500_000, "keep": 1_000_000, "memory": 500_000, "sqlite": 300_000, "peer": 30_000}


def _job(bench: Bench, workload: str, size: int) -> dict[str, Any]:
    return {"workload": workload, "callers": STREAMS, "seconds": bench.seconds, "size": size}


def _most() -> dict[str, dict[str, int]]:
    return {kind: {"most_spans": most} for kind, most in MOST.items()}


def _ingest(bench: Bench) -> Samples:
    kinds = ["sink"]
    if 4 in bench.rows:
        kinds += ["keep", "memory"]
    if 5 in bench.rows:
        kinds.append("sqlite")
    job = _job(bench, "ingest", 100)
    return bench.shared("ingest", lambda: bench.rounds(kinds, job, **_most()))


def memory(bench: Bench) -> None:
    """Row 4: IngestSpans, 1.2 KB a span, 100 a message, 8 streams; memory ÷ a sink that parses and drops.

    The sink keeps nothing, so it never asks the system for memory; the store has to. What that alone costs
    shows the sink that keeps the bytes in a list. No span comes twice.
    """
    found = _ingest(bench)
    bench.compare("4", "ingest 100", found["memory"], found["sink"], 0.7)
    bench.compare(
        "4", "ingest 100", found["memory"], found["keep"], None, of=" ÷ a sink that keeps"
    )


def sqlite(bench: Bench) -> None:
    """Row 5: the same, SQLite at full durability ÷ the sink, and per second; and the peer's best path.

    The clock stops when all that was sent is durable.
    """
    found = _ingest(bench)
    bench.compare("5", "ingest 100", found["sqlite"], found["sink"], 0.4)
    samples = [rate(trial["ingest 100"]) for trial in found["sqlite"]]
    bench.add("5", "ingest 100: spans", "/s", samples, 60_000)
    if bench.peer:
        job = {**_job(bench, "add_one", 1), "callers": 16, "most_calls": 1500}
        bench.rounds(["peer"], job)  # kept beside: the path of its own client
        both = {**found, "peer": _peer_export(bench)}
        beside_peer(bench, "spans: SQLite ÷ peer's OTLP/HTTP", both, "ingest 100", "export 512", 8)


def _peer_export(bench: Bench) -> list[Trial]:
    job = {**_job(bench, "export", 512), "most_spans": MOST["peer"]}
    return bench.shared("peer export", lambda: bench.rounds(["peer"], job)["peer"])


def otlp(bench: Bench) -> None:
    """Row 6: OTLP Export, 512 spans a call, 8 exporters ÷ IngestSpans of the same, 512 a message; SQLite.

    The resource names the attempt, as the client's exporter has it; spans that name it one by one are
    regrouped, which costs more and is not measured.
    """
    most = {"most_spans": MOST["sqlite"]}
    exports: list[Trial] = []
    ingests: list[Trial] = []
    for number in range(bench.repetitions):
        bench.say(f"{number + 1}/{bench.repetitions} export and ingest sqlite")
        exports.append(bench.trial("sqlite", {**_job(bench, "export", 512), **most}))
        ingests.append(bench.trial("sqlite", {**_job(bench, "ingest", 512), **most}))
    ratios = [
        rate(a["export 512"]) / rate(b["ingest 512"]) for a, b in zip(exports, ingests, strict=True)
    ]
    bench.add("6", "Export of 512 ÷ IngestSpans", "×", ratios, 0.7)
    bench.add("6", "Export of 512: spans", "/s", [rate(trial["export 512"]) for trial in exports])
    if bench.peer:
        both = {"sqlite": exports, "peer": _peer_export(bench)}
        beside_peer(
            bench, "OTLP spans: SQLite ÷ peer's OTLP/HTTP", both, "export 512", "export 512", 8
        )


def query(bench: Bench) -> None:
    """Row 7: QuerySpans of 1,000 spans, one caller, parsed; in turn over 50 rollouts that have as many.

    Not measured: a server that is busy meanwhile, filters, orders other than the stored one.
    """
    job = {"workload": "query", "callers": 1, "seconds": bench.seconds, "rollouts": 50}
    job["spans"] = 1000
    kinds = ["sqlite", "memory", *(["peer"] if bench.peer else [])]
    found = bench.rounds(kinds, job)
    for kind in ("sqlite", "memory"):
        samples = [trial["query 1000"]["p50_ms"] for trial in found[kind]]
        bench.add("7", f"1,000 spans, {kind}: median", "ms", samples, 6, at_least=False)
    if bench.peer:
        pairs = zip(found["peer"], found["sqlite"], strict=True)
        times = [a["query 1000"]["p50_ms"] / b["query 1000"]["p50_ms"] for a, b in pairs]
        bench.add("peer", "query, median: peer's time ÷ SQLite's", "×", times, 5)


def resident(bench: Bench) -> None:
    """Row 10: what 200,000 spans add to the memory back end's resident memory ÷ their serialised bytes.

    Looked at half a second after the last; nothing is evicted.
    """
    job = {"workload": "retain", "callers": 1, "spans": 200_000}
    samples = []
    for trial in bench.rounds(["memory"], job)["memory"]:
        part = trial["retain"]
        samples.append(part["rss_grown_bytes"] / (part["items"] * part["span_bytes"]))
    bench.add("10", "resident ÷ serialised bytes of a span", "×", samples, 1.35, at_least=False)


def file_size(bench: Bench) -> None:
    """Row 12: bytes of the closed data file a span, 100,000 spans in messages of 100, plain and compressed.

    The text compresses about as English does; smaller messages compress less.
    """
    job = {"workload": "retain", "callers": 1, "spans": 100_000}
    for label, flags, goal in (("plain", (), 1.4), ("compressed", ("--compress-spans",), 0.6)):
        samples = []
        for _ in range(bench.repetitions):
            with tempfile.TemporaryDirectory(dir=bench.folder) as place:
                path = Path(place) / "store.db"
                trial = bench.trial("sqlite", job, "--db", str(path), *flags)
                size = sum(part.stat().st_size for part in Path(place).iterdir())
                samples.append(size / trial["retain"]["items"] / 1000)
        bench.add("12", f"file a span, {label}", "KB", samples, goal, at_least=False)
