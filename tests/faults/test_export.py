"""An export of a million spans: memory stays flat, and what broke off is gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from lightningstore.client import LightningStore, SpanBatch
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.lab import COMMAND, Lab, until

SPANS_OF_ONE = 500
MIB = 1 << 20
#: Runs a command and prints its peak of memory, in KiB, and its CPU seconds. A program of its own, because a
#: process takes over the peak of the one that started it.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


class Ran(NamedTuple):
    """What a command took."""

    peak_mib: float
    cpu_seconds: float
    seconds: float


def export(lab: Lab, *arguments: str) -> Ran:
    begin = time.monotonic()
    command = [sys.executable, "-c", MEASURE, COMMAND, "export", "--address", lab.address]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True, text=True)
    peak, cpu = done.stdout.split()[-2:]
    return Ran(int(peak) / 1024, float(cpu), time.monotonic() - begin)


def rows(path: Path) -> int:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).metadata.num_rows
    with path.open("rb") as file:
        return sum(1 for _ in file)


def rollouts(count: int) -> Iterator[ImportRolloutsRequest]:
    """Yield finished rollouts of SPANS_OF_ONE spans of a call of a model each."""
    attributes = [
        *(_pair(f"gen_ai.request.key{n}", f"value {n}") for n in range(6)),
        _pair("gen_ai.usage.output_tokens", 17),
        _pair("prompt_token_ids", "[1, 2, 3]"),
    ]
    for n in range(count):
        trace_id = (n + 1).to_bytes(16, "big")
        batch = SpanBatch(rollout_id=f"ro-{n}", attempt_id="at-1")
        for at in range(SPANS_OF_ONE):
            batch.spans.append(
                Span(
                    trace_id=trace_id,
                    span_id=(at + 1).to_bytes(8, "big"),
                    name="openai.chat.completion",
                    start_time_unix_nano=1_700_000_000_000_000_000 + at,
                    end_time_unix_nano=1_700_000_000_000_000_500 + at,
                    attributes=attributes,
                )
            )
        request = ImportRolloutsRequest(batches=[batch])
        for record in (request.rollout, request.attempts.add()):
            record.rollout_id = f"ro-{n}"
            record.start_time.seconds = record.end_time.seconds = 1_700_000_000 + n
        request.rollout.input_json, request.rollout.status = b"{}", 4
        request.rollout.attempt_count, request.rollout.latest_attempt_id = 1, "at-1"
        request.attempts[0].attempt_id, request.attempts[0].status = "at-1", 3
        request.attempts[0].sequence_number = 1
        yield request


def _pair(key: str, value: str | int) -> KeyValue:
    pair = KeyValue(key=key)
    if isinstance(value, str):
        pair.value.string_value = value
    else:
        pair.value.int_value = value
    return pair


def test_memory_of_an_export_does_not_grow_with_it(lab: Lab, tmp_path: Path, tries) -> None:
    """Nor its time faster than it: the bounds are twice what was measured."""
    count = tries("exported spans") // SPANS_OF_ONE
    spans = count * SPANS_OF_ONE
    few = max(1, count // 20)
    lab.start()
    with LightningStore(lab.address) as store:
        assert store.import_rollouts(rollouts(count)).imported_count == count
    for form, growth_mib, seconds_a_million in (("jsonl", 40, 115), ("parquet", 80, 230)):
        small = export(lab, "-o", str(tmp_path / f"few.{form}"), "--id-contains", f"-{few}")
        target = tmp_path / f"all.{form}"
        large = export(lab, "-o", str(target))
        assert rows(target) == count
        print(
            f"{spans:,} spans, {target.stat().st_size / MIB:,.0f} MiB of {form}: "
            f"{large.seconds:.0f} s, {large.cpu_seconds:.0f} s of CPU, peak {large.peak_mib:.0f} MiB; "
            f"a few rollouts: peak {small.peak_mib:.0f} MiB"
        )
        assert large.peak_mib < small.peak_mib + growth_mib
        assert large.cpu_seconds < 5 + spans / 1_000_000 * seconds_a_million


def test_killed_export_is_gone_on_with_to_the_same_bytes(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    with LightningStore(lab.address) as store:
        store.import_rollouts(rollouts(100))
    export(lab, "-o", str(tmp_path / "whole.jsonl"))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    target, partial = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    arguments = [COMMAND, "export", "--address", lab.address, "-o", str(target)]
    process = subprocess.Popen(arguments)
    until("something is written", lambda: partial.exists() and partial.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert 0 < partial.stat().st_size < len(whole)
    export(lab, "-o", str(target), "--resume")
    assert target.read_bytes() == whole
