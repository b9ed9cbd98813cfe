"""`lightningstore export`, `import` and `trace` against running servers."""

from __future__ import annotations

import gzip
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore, ExportedRollout
from lightningstore.client.datasets import read_dataset
from lightningstore.service.cli.datasets import _Begun, export_command

from tests.contract.conftest import World
from tests.contract.helpers import batch
from tests.finished import FINISHED, HOSTILE, fill
from tests.integration.process import run

pytestmark = pytest.mark.asyncio


class Store:
    """A server, its client, and the command line at it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.client = AsyncLightningStore(address, timeout=10)

    async def run(self, *arguments: str) -> str:
        code, out, errors = await run(*arguments, "--address", self.address, folder=self.folder)
        assert code == 0, errors
        return out or errors

    async def error(self, *arguments: str) -> str:
        code, out, errors = await run(*arguments, "--address", self.address, folder=self.folder)
        # Wrong usage is followed by a line on the usage.
        assert (out, errors.count("\n")) == ("", code), errors
        assert code in (1, 2)
        return errors

    def begun(self, name: str, data: bytes, *arguments: str) -> None:
        """Leave what an export leaves that breaks off."""
        given = export_command.make_context("export", [*arguments]).params
        partial = self.folder / f"{name}.partial"
        partial.write_bytes(data)
        _Begun(partial, given).write()

    async def export(self, name: str, *arguments: str) -> bytes:
        await self.run("export", "-o", name, *arguments)
        return (self.folder / name).read_bytes()


@pytest_asyncio.fixture
async def source(tmp_path: Path) -> AsyncIterator[Store]:
    """A store in memory with finished rollouts of every kind, and one that is not finished."""
    async for store in _opened("memory-grpc", tmp_path):
        await fill(store.client)
        yield store


@pytest_asyncio.fixture
async def target(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store on disk."""
    async for store in _opened("sqlite-grpc", tmp_path):
        yield store


async def _opened(way: str, folder: Path) -> AsyncIterator[Store]:
    world = World(way, folder)
    await world.start()
    assert world.server is not None
    store = Store(world.server.address, folder)
    yield store
    await store.client.close()
    await world.stop()


async def test_a_dash_is_stdout_and_never_a_file(source: Store) -> None:
    whole = await source.export("a.jsonl")
    assert (await source.run("export", "-o", "-")).encode() == whole
    assert not (source.folder / "-").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--id", "ro-nobody"), "no rollout 'ro-nobody'"),
        (("--id", "ro-open"), "ro-open.*only finished rollouts are exported"),
        (("--id", "ro-cancelled", "--status", "failed"), "other filters"),
        (("--id", "ro-cancelled", "--id", "ro-nobody"), "no rollout 'ro-nobody'"),
    ],
)
async def test_an_id_that_matches_nothing_is_an_error_and_leaves_no_file(
    source: Store, arguments: tuple[str, ...], why: str
) -> None:
    await source.client.enqueue_rollout(None, rollout_id="ro-open")
    assert re.search(why, await source.error("export", "-o", "a.jsonl", *arguments))
    assert re.search(why, await source.error("export", *arguments))
    assert not list(source.folder.glob("a.jsonl*"))


async def test_rewards_are_exported_without_spans_too(source: Store) -> None:
    whole = [json.loads(line) for line in (await source.export("a.jsonl")).splitlines()]
    short = await source.export("b.jsonl", "--no-spans")
    rewards = [json.loads(line)["reward"] for line in short.splitlines()]
    assert rewards == [row["reward"] for row in whole]
    assert any(reward is not None for reward in rewards)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
async def test_export_import_export_gives_the_same_bytes(
    source: Store, target: Store, name: str
) -> None:
    first = await source.export(name, "--triplets")
    told = await target.run("import", name)
    assert f"{name}: {len(FINISHED)} rollouts imported, 0 known" in told
    assert await target.export(f"again-{name}", "--triplets") == first
    assert f"0 rollouts imported, {len(FINISHED)} known" in await target.run("import", name)


async def test_parquet_of_earlier_versions_is_imported(source: Store, target: Store) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    await source.export("a.parquet")
    table = parquet.read_table(source.folder / "a.parquet")
    at = table.schema.get_field_index("attempts")
    attempts = table.column(at)
    added = {"publish_number", "reward", "scores", "reward_source", "span_reward"}
    kept = [f for f in attempts.type.value_type if f.name not in added]
    pa = pytest.importorskip("pyarrow")
    earlier = attempts.cast(pa.list_(pa.struct(kept)))
    parquet.write_table(table.set_column(at, "attempts", earlier), source.folder / "old.parquet")
    assert f"{len(FINISHED)} rollouts imported" in await target.run("import", "old.parquet")


async def test_stdout_has_the_lines_for_everybody_and_stderr_the_rest(source: Store) -> None:
    code, out, errors = await run("export", "--address", source.address, folder=source.folder)
    assert code == 0
    last = len(FINISHED) + 1
    assert re.fullmatch(
        rf"9 rollouts and \d+ spans, through completion number {last}; "
        rf"for what finishes later: --after {last}\n",
        errors,
    )
    assert [json.loads(line)["rollout_id"] for line in out.split("\n")[:-1]] == FINISHED
    assert out.encode() == await source.export("a.jsonl")
    await source.client.cancel_rollouts(["ro-waiting"])
    later = await source.export("b.jsonl", "--after", str(last))
    assert [json.loads(line)["rollout_id"] for line in later.splitlines()] == ["ro-waiting"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
async def test_broken_export_is_gone_on_with(source: Store, name: str) -> None:
    whole = await source.export(name)
    lines = (await source.export("lines.jsonl")).splitlines(keepends=True)
    (source.folder / name).unlink()
    source.begun(name, b"".join(lines[:4]) + lines[4][:30])
    assert "--resume" not in await source.run("export", "-o", name, "--resume")
    assert (source.folder / name).read_bytes() == whole
    assert not list(source.folder.glob(f"{name}.*"))


async def test_rollout_that_finished_anew_since_is_not_where_it_goes_on(source: Store) -> None:
    lines = (await source.export("a.jsonl")).splitlines(keepends=True)
    again = await source.client.start_attempt(FINISHED[2])
    await source.client.update_attempt(FINISHED[2], again.attempt.attempt_id, status="failed")
    source.begun("b.jsonl", b"".join(lines[:3]))
    got = (await source.export("b.jsonl", "--resume")).splitlines(keepends=True)
    assert got[:-1] == lines
    assert (json.loads(got[-1])["rollout_id"], json.loads(got[-1])["status"]) == (
        FINISHED[2],
        "failed",
    )


async def test_what_would_be_mixed_up_is_refused(source: Store, target: Store) -> None:
    lines = await source.export("a.jsonl", "--status", "cancelled")
    options = ["--triplets", "--status", "failed", "--status", "cancelled", "--source", "tracer"]
    source.begun("b.jsonl", lines, *options)
    (source.folder / "c.jsonl.partial").write_bytes(lines)
    resumed = [
        "-o",
        "b.jsonl",
        "--resume",
        "--triplets",
        "--status",
        "cancelled",
        "--status",
        "failed",
    ]
    for store, arguments, why in (
        (
            source,
            [*resumed, "--source", "proxy"],
            '--source was "tracer", now it is "proxy"; --repl',
        ),
        (source, [*resumed, "--status", "succeeded"], '--status was ["cancelled", "failed"], now'),
        (source, ["-o", "b.jsonl", "--resume"], "--triplets was true, now it is false; "),
        (source, ["-o", "c.jsonl", "--resume"], "c.jsonl.partial was begun, is missing: --repl"),
        (target, resumed, "is it another store?"),
        (source, ["-o", "b.jsonl"], "b.jsonl.partial exists"),
        (source, ["-o", "a.jsonl"], "a.jsonl exists already"),
        (source, ["--resume"], "need --output FILE"),
    ):
        assert why in await store.error("export", *arguments)
    assert await source.export("a.jsonl", "--replace", "--any", "--mode", "val") == lines


async def test_options_without_use_and_bad_ones_leave_nothing_behind(source: Store) -> None:
    for option in ("--source", "tracer"), ("--llm-call-match", "x"), ("--skip-without-tokens",):
        told = await source.error("export", "-o", "a.jsonl", *option)
        assert f"{option[0]}: only with --triplets" in told
    bad = await source.error("export", "-o", "a.jsonl", "--triplets", "--llm-call-match", "[")
    assert "INVALID_ARGUMENT" in bad
    assert not list(source.folder.glob("a.jsonl*"))
    assert await source.export("a.jsonl", "--triplets", "--llm-call-match", "[a]")
    assert [path.name for path in source.folder.glob("a.jsonl*")] == ["a.jsonl"]


async def test_bad_line_and_bad_rollout_are_named(source: Store, target: Store) -> None:
    lines = (await source.export("a.jsonl")).splitlines(keepends=True)
    bad = source.folder / "bad.jsonl"
    for text, why in (
        (lines[2][:100], "line 3: "),
        (
            lines[2].replace(b'"status":"succeeded"', b'"status":"running"', 1),
            "messages[2].rollout.status: running is not a final status",
        ),
    ):
        bad.write_bytes(b"".join(lines[:2]) + text)
        assert why in await target.error("import", "bad.jsonl")
    assert "No such file" in await target.error("import", "none.jsonl")


OTLP = """
{"resourceSpans":[{"resource":{"attributes":[{"key":"agentlightning.rollout_id","value":{"stringValue":"ro-1"}},\
{"key":"agentlightning.attempt_id","value":{"stringValue":"ATTEMPT"}}]},"scopeSpans":[{"scope":{"name":"lib"},\
"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"named","kind":2,\
"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000",\
"attributes":[{"key":"n","value":{"intValue":"9007199254740993"}}]}]}]}]}

{"resourceSpans":[{"resource":{},"scopeSpans":[{"spans":[\
{"traceId":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","spanId":"0000000000000001","parentSpanId":"","name":"root",\
"startTimeUnixNano":"2000000000","endTimeUnixNano":"5000000000","status":{"code":2,"message":"no"}},\
{"traceId":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","spanId":"0000000000000002","name":"other","futureField":1,\
"startTimeUnixNano":"3000000000","endTimeUnixNano":"3000000001"},\
{"traceId":"cccccccccccccccccccccccccccccccc","spanId":"0000000000000003","name":"nowhere",\
"attributes":[{"key":"agentlightning.rollout_id","value":{"stringValue":"ro-none"}},\
{"key":"agentlightning.attempt_id","value":{"stringValue":"at-none"}}]}]}]}]}
{"resourceSpans":[{"scopeSpans":[{"spans":[\
{"traceId":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","spanId":"0000000000000004","parentSpanId":"0000000000000001",\
"name":"child","startTimeUnixNano":"1000000000","endTimeUnixNano":"2000000000"}]}]}]}
""".lstrip().replace("\\\n", "")


async def test_otlp_file_of_the_collector_is_imported(target: Store) -> None:
    made = await target.client.start_rollout(None, rollout_id="ro-1")
    file = target.folder / "traces.json"
    file.write_text(OTLP.replace("ATTEMPT", made.attempt.attempt_id))
    told = await target.run("import", "traces.json")
    assert "1 span that names its attempt stored or known; 1 refused: " in told
    assert "no rollout 'ro-none'" in told
    assert "3 left out that name none: --rollout-per-trace takes them" in told
    (span,) = [s async for s in target.client.query_spans("ro-1")]
    assert (span.name, span.trace_id, span.attributes) == (
        "named",
        "5b8efff798038103d269b633813fc60c",
        {"n": 9007199254740993},
    )
    assert span.scope.name == "lib"
    assert len(await target.client.list_rollouts()) == 1

    told = await target.run("import", "traces.json", "--rollout-per-trace")
    assert "of 3 that name none: 2 rollouts imported, 0 known, 3 spans stored, 0 known" in told
    failed = await target.client.get_rollout("ro-" + "a" * 32)
    assert (failed.status, failed.attempt.status, failed.input) == ("failed", "failed", None)
    assert failed.message.start_time.ToNanoseconds() == 1_000_000_000
    assert failed.message.end_time.ToNanoseconds() == 5_000_000_000
    names = [s.name async for s in target.client.query_spans("ro-" + "a" * 32)]
    assert names == ["root", "child"]
    assert (await target.client.get_rollout("ro-" + "b" * 32)).status == "succeeded"
    told = await target.run("import", "traces.json", "--rollout-per-trace")
    assert "of 3 that name none: 0 rollouts imported, 2 known, 0 spans stored, 3 known" in told
    file.write_text(file.read_text() + '{"resourceLogs":[]}\n')
    assert "; 1 lines of metrics or logs passed over" in await target.run("import", "traces.json")


def otlp(*spans: dict[str, object]) -> str:
    """Return a request that names no attempt, as a line of JSON."""
    usual = {"traceId": "ab" * 16, "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    told = [{**usual, **span} for span in spans]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": told}]}]}) + "\n"


def ids(number: int, **more: object) -> dict[str, object]:
    return {"spanId": f"{number:016x}", **more}


async def test_trace_over_files_that_rotate_and_grow_is_one_rollout(target: Store) -> None:
    one, two = target.folder / "one.json", target.folder / "two.json"
    take = ("import", "--rollout-per-trace")
    one.write_text(otlp(ids(1)))
    two.write_text(otlp(ids(2, endTimeUnixNano="9", status={"code": 2})))
    told = await target.run(*take, "one.json", "two.json")
    assert "of 2 that name none: 1 rollout imported, 0 known, 2 spans stored, 0 known" in told
    stored = await target.client.get_rollout("ro-" + "ab" * 16)
    assert (stored.status, stored.message.end_time.ToNanoseconds()) == ("failed", 9)
    # One that was imported before keeps its record, and takes what is new of its spans.
    two.write_text(
        two.read_text() + otlp(ids(3, endTimeUnixNano="20"), {**ids(4), "traceId": "cd" * 16})
    )
    told = await target.run(*take, "two.json")
    assert "of 3 that name none: 1 rollout imported, 1 known, 2 spans stored, 1 known" in told
    told = await target.run(*take, "one.json", "two.json")
    assert "of 4 that name none: 0 rollouts imported, 2 known, 0 spans stored, 4 known" in told
    kept = await target.client.get_rollout("ro-" + "ab" * 16)
    assert (kept.status, kept.message.end_time) == ("failed", stored.message.end_time)
    assert len([s async for s in target.client.query_spans("ro-" + "ab" * 16)]) == 3
    # An attempt more does not stand in the way, and a rollout that has not finished is not written to.
    again = await target.client.start_attempt("ro-" + "ab" * 16)
    code, _, errors = await run(
        *take, "one.json", "--address", target.address, folder=target.folder
    )
    assert (code, "ALREADY_EXISTS" in errors) == (1, True)
    await target.client.update_attempt("ro-" + "ab" * 16, again.attempt.attempt_id, status="failed")
    one.write_text(otlp(ids(7, endTimeUnixNano=str(2**64 - 1)), {**ids(8), "traceId": "ef" * 16}))
    assert "1 rollout imported, 1 known, 2 spans stored" in await target.run(*take, "one.json")


async def test_what_is_no_span_is_left_out_and_named_by_its_line(target: Store) -> None:
    text = (
        "\n  \n"
        + otlp(ids(1), {"spanId": "zz"})
        + otlp({"spanId": "00"}, {"spanId": "0" * 16}, ids(2))
        + '{"resourceMetrics":[]}\n{"resourceLogs":[]}\n{"other":1}\n'
        + otlp(ids(3))[:60]
        + "\n"
        + otlp(ids(4, traceId="zz"), ids(5, attributes=5), ids(6, name="x" * (5 << 20)))
    )
    (target.folder / "a.json.gz").write_bytes(gzip.compress(text.encode()))
    told = await target.run("import", "--rollout-per-trace", "a.json.gz")
    for part in (
        "a.json.gz: 0 spans that name their attempt stored or known; ",
        "; 1 refused: line 3: spanId must be hex digits, not 'zz'",
        "; 1 refused: line 4: span_id: 1 bytes, must be 8",
        "; 1 refused: line 4: span_id: all zero",
        "refused for other reasons",
        "; 1 lines left out: line 7: no request of traces: it has no resourceSpans",
        "; 1 lines left out: line 8: ",
        "; 2 lines of metrics or logs passed over",
        "\nof 2 that name none: 1 rollout imported, 0 known, 2 spans stored, 0 known\n",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (otlp({"spanId": "zz"}), "1 refused: line 1: spanId must be hex digits"),
        (otlp(ids(1)), "1 left out that name none: --rollout-per-trace takes them"),
        ('{"resourceMetrics":[]}\n', "1 lines of metrics or logs passed over"),
        ('{"resourceSpans":5}\n', "1 lines left out: line 1: resourceSpans must be a list"),
        (otlp({"spanId": "z" * 5000}), "1 refused: line 1: .{159}…"),
    ],
)
async def test_file_of_which_nothing_was_taken_is_an_error(
    target: Store, data: str, why: str
) -> None:
    (target.folder / "a.json").write_text(data)
    code, _, errors = await run(
        "import", "a.json", "--address", target.address, folder=target.folder
    )
    assert code == 1
    assert re.fullmatch(
        rf"a\.json: 0 spans .*{why}.*\nlightningstore: no span could be taken.*\n", errors
    )


async def test_file_that_cannot_be_read_is_named_with_what_would_be_right(target: Store) -> None:
    packed = gzip.compress(otlp(ids(1)).encode() * 1000)
    files = {
        "pretty.json": (
            json.dumps({"resourceSpans": []}, indent=1),
            "line 1: one JSON object a line",
        ),
        "cut.gz": (packed[:-20], "gzip cannot decompress the file"),
        "a.zst": (b"\x28\xb5\x2f\xfd....", "the file is compressed with zstd: use JSON lines"),
        "collector.zst": (b"\0\0\1\0\x28\xb5\x2f\xfd..", "the file is compressed with zstd"),
        "a.jsonl": ("\n{}\n", "line 2: no exported rollout"),
    }
    (target.folder / "good.json").write_text(otlp())  # has nothing that could be taken or not
    for name, (data, why) in files.items():
        (target.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        code, _, errors = await run(
            *("import", "good.json", name, "--address", target.address), folder=target.folder
        )
        assert (code, errors.count("\n")) == (1, 2), errors
        assert f"\nlightningstore: {name}: {'' if name == 'cut.gz' else why}" in errors
        assert why in errors


async def test_import_reads_stdin_and_gzip(source: Store, target: Store) -> None:
    for name, pack in (("a.jsonl", bytes), ("a.jsonl", gzip.compress), ("a.parquet", bytes)):
        (target.folder / name).unlink(missing_ok=True)
        data = pack(await source.export(name))
        code, _, errors = await run(
            *("import", "-", "--address", target.address), folder=target.folder, stdin=data
        )
        assert code == 0
        assert errors.startswith("-: ")
    assert f"0 rollouts imported, {len(FINISHED)} known" in errors
    data = otlp(ids(1)).encode()
    code, _, errors = await run(
        *("import", "-", "--rollout-per-trace", "--address", target.address),
        folder=target.folder,
        stdin=data,
    )
    assert "1 rollout imported, 0 known, 1 span stored" in errors


async def test_trace_is_shown_as_tree_and_as_pictures(source: Store) -> None:
    made = await source.client.start_rollout(None, rollout_id="ro-shown")
    ids = ("ro-shown", made.attempt.attempt_id)
    sent = batch(*ids, "top", HOSTILE, "orphan")
    sent.spans[1].parent_span_id = sent.spans[0].span_id
    sent.spans[1].status.code, sent.spans[1].status.message = 2, HOSTILE
    sent.spans[2].parent_span_id = b"\7" * 8
    sent.spans[0].attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 1234
    sent.spans[0].attributes.add(key="gen_ai.usage.output_tokens").value.int_value = 56
    sent.spans[0].attributes.add(key="agentlightning.reward").value.double_value = 0.5
    await source.client.add_spans(sent)
    out = await source.run("trace", "ro-shown", "--no-color")
    assert re.search(r"├── top  \+0, 1 µs  1,234 → 56 tokens  reward 0.5\n│   └── a\"", out)
    assert re.search(r"└── \(parent that never came\).*\n    └── orphan  \+2 ns, 1 µs\n", out)
    assert "\x1b" not in out
    assert "errors 1" in out
    shown = json.loads(await source.run("trace", "ro-shown", "--attempt", ids[1], "--json"))
    assert [(line["depth"], line["kind"]) for line in shown["lines"]] == [
        (0, "reward"),
        (1, "span"),
        (0, "lost"),
        (1, "span"),
    ]
    for name in ("t.svg", "t.html"):
        await source.run("trace", "ro-shown", "-o", name)
        text = (source.folder / name).read_text()
        assert "</script>" not in text
        picture = text[text.index("<svg") : text.index("</svg>") + 6]
        assert {e.tag.rpartition("}")[2] for e in ET.fromstring(picture).iter()} == {
            *("svg", "style", "rect", "text", "tspan", "g", "line", "title"),
        }
    assert "ends in .svg or .html" in await source.error("trace", "ro-shown", "-o", "t.png")
    assert "no rollout 'ro-none'" in await source.error("trace", "ro-none")
    waiting = await source.error("trace", "ro-waiting")
    assert "rollout 'ro-waiting' is queuing and has no attempt yet" in waiting
    cancelled = await source.error("trace", "ro-cancelled")
    assert "rollout 'ro-cancelled' is cancelled and had no attempt" in cancelled


async def test_trace_counts_a_response_once_and_cuts_long_names(source: Store) -> None:
    out = await source.run("trace", "ro-agentops", "--no-color")
    assert ", prompt tokens 1, response tokens 1, " in out
    made = await source.client.start_rollout(None, rollout_id="ro-long")
    await source.client.add_spans(batch("ro-long", made.attempt.attempt_id, "x" * 1000))
    assert f"└── {'x' * 159}…  +0" in await source.run("trace", "ro-long", "--no-color")
    await source.run("trace", "ro-long", "-o", "t.svg")
    assert "x" * 1000 in (source.folder / "t.svg").read_text()


async def test_files_are_read_back_alike(source: Store) -> None:
    def told(rollout: ExportedRollout) -> tuple[object, ...]:
        spans = [s.otlp.SerializeToString() for s in rollout.spans]
        return rollout.rollout.message, [a.message for a in rollout.attempts], spans

    await source.export("a.jsonl")
    await source.export("a.parquet")
    one, other = (list(read_dataset(source.folder / f"a.{kind}")) for kind in ("jsonl", "parquet"))
    assert list(map(told, one)) == list(map(told, other))
