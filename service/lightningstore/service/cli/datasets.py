"""`lightningstore export` and `import`: finished rollouts from a store to a file, and from files to a store."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import click
from lightningstore.service.cli import connection, units
from lightningstore.service.cli.connection import error_text, opened
from lightningstore.service.cli.outcomes import FINISHED, spans_told
from lightningstore.service.cli.queues import label_option, queues_option
from lightningstore.service.cli.triplet_options import merge_option, triplet_options
from lightningstore.service.cli.units import count
from lightningstore.service.cli.views import enum_words
from lightningstore.service.engine.clock import SystemClock
from lightningstore.v1 import rollout_pb2

if TYPE_CHECKING:
    # At run time it is imported where it is used: it brings OpenTelemetry's SDK, which `serve` does not need.
    from lightningstore.client import ExportedRollout, LightningStore
    from lightningstore.client.datasets import DatasetWriter

FORMATS = ("jsonl", "parquet")
#: Seconds between two looks of the progress.
PROGRESS_SECONDS = 0.2
#: What triplets are made by, and what else says what an export holds.
TRIPLET_OPTIONS = (
    "source",
    "llm_call_match",
    "agent_match",
    "skip_without_tokens",
    "reward_policy",
)
#: What samples are made by. They are not continued, so they are not kept beside a partial file.
SAMPLE_OPTIONS = ("source", "llm_call_match", "agent_match", "merge", "reward_policy")
#: The words of this project, where --samples names no trainer.
OWN_WORDS = "lightningstore"
WORDS = (OWN_WORDS, "art", "prime-rl", "skyrl", "slime", "tinker", "trl", "verl")
CONTENT = (
    *("spans", "triplets", *TRIPLET_OPTIONS, "skip_evicted", "after"),
    *("status", "id", "id_contains", "mode", "group", "any"),
)


@contextmanager
def progress(what: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """Show progress on a terminal. Yields a function of the amount done, the total if known, and a text."""
    shown = sys.stderr.isatty()
    clock = SystemClock()
    is_shown = False
    last = clock.monotonic()

    def show(done: float, total: float | None, text: str) -> None:
        nonlocal is_shown, last
        if not shown or clock.monotonic() - last < PROGRESS_SECONDS:
            return
        is_shown, last = True, clock.monotonic()
        share = f" {min(1.0, done / total):.0%}" if total else ""
        click.echo(f"\r{what}{share}, {text}\x1b[K", nl=False, err=True)

    yield show
    if is_shown:
        click.echo("\r\x1b[K", nl=False, err=True)


def _export(**given: Any) -> None:
    """Write finished rollouts to a file, in the order in which they finished.

    The filters are joined by and, unless --any. Until it is complete the file is called FILE.partial. If the
    export breaks off, the same command with --resume continues it.
    """
    options = connection.take(given)
    target: Path | None = given.pop("output")
    if str(target) == "-":
        target = None
    if target is None and (given["format"] == "parquet" or given["resume"]):
        raise click.UsageError("--format parquet and --resume need --output FILE")
    _check_content(given)
    if given["triplets"] or given["samples"]:
        given["source"] = given["source"] or "tracer"
    with opened(options) as store:
        export = _Export(store, given)
        export.check_ids()
        if target is None:
            export.to_stdout()
        elif given["samples"]:
            export.samples_to_file(target)
        else:
            export.to_file(target)


def _check_content(given: dict[str, Any]) -> None:
    """Raise click.UsageError for options that have no effect together."""
    if given["samples"]:
        if given["triplets"] or given["resume"]:
            other = "--triplets" if given["triplets"] else "--resume"
            raise click.UsageError(f"--samples and {other} exclude each other")
        used: tuple[str, ...] = SAMPLE_OPTIONS
        which = "--triplets"
    else:
        used = TRIPLET_OPTIONS if given["triplets"] else ()
        which = "--samples" if given["triplets"] else "--triplets or --samples"
    names = dict.fromkeys((*TRIPLET_OPTIONS, *SAMPLE_OPTIONS))
    idle = [name for name in names if given[name] and name not in used]
    if idle:
        raise click.UsageError(f"{', '.join(map(_flag, idle))}: only with {which}")


class _Export:
    """One export, by the options of the command."""

    def __init__(self, store: LightningStore, given: dict[str, Any]) -> None:
        self._store = store
        self._given = given
        self._after: int = given["after"]
        self._through = store.get_statistics().last_completion_number
        self._rollouts = self._spans = self._samples = self._warnings = 0
        words = given["samples"]
        self._trainer = "" if words in (None, OWN_WORDS) else words

    def check_ids(self) -> None:
        """Refuse ids that name no finished rollout, before anything is written."""
        from lightningstore.client import NotFoundError  # noqa: PLC0415

        for rollout_id in self._given["id"]:
            try:
                rollout = self._store.get_rollout(rollout_id)
            except NotFoundError:
                raise click.ClickException(f"--id: there is no rollout {rollout_id!r}") from None
            if rollout.status.value not in FINISHED:
                raise click.ClickException(
                    f"--id: rollout {rollout_id!r} is {rollout.status.value}; only finished rollouts are exported"
                )

    def to_stdout(self) -> None:
        from lightningstore.client.datasets import encode, encode_samples  # noqa: PLC0415

        out = sys.stdout.buffer

        def write(rollout: Any) -> None:
            if not self._given["samples"]:
                out.write(encode(rollout))
            for attempt in rollout.samples or ():
                out.write(encode_samples(attempt, self._trainer))

        self._run(write)
        out.flush()
        self._tell()

    def samples_to_file(self, target: Path) -> None:
        from lightningstore.client.datasets import SampleWriter  # noqa: PLC0415

        kind = self._given["format"]
        parquet = None if kind is None else kind == "parquet"
        replace = self._given["replace"]
        with SampleWriter(
            target, trainer=self._trainer, parquet=parquet, replace=replace
        ) as writer:

            def write(rollout: Any) -> None:
                for attempt in rollout.samples:
                    writer.write(attempt)

            self._run(write)
        self._tell()

    def to_file(self, target: Path) -> None:
        from lightningstore.client.datasets import DatasetWriter  # noqa: PLC0415

        given = self._given
        kind = given["format"]
        writer = DatasetWriter(
            target,
            parquet=None if kind is None else kind == "parquet",
            resume=given["resume"],
            replace=given["replace"] and not given["resume"],
        )
        begun = _Begun(writer.partial, given)
        try:
            with writer:
                if given["resume"]:
                    self._after = max(self._after, self._resumed(writer, begun))
                begun.write()
                self._run(writer.write)
        finally:
            begun.tidy()
        self._tell()

    def _resumed(self, writer: DatasetWriter, begun: _Begun) -> int:
        """Return the number of the last finish that the file has, as the store counts it."""
        from lightningstore.client import NotFoundError  # noqa: PLC0415

        empty = True
        for written in writer.written():
            if empty:
                begun.check()
            empty = False
            try:
                rollout = self._store.get_rollout(written.rollout_id)
            except NotFoundError:
                continue  # removed since; one before it will do
            if written.is_the_same_finish(rollout):
                return rollout.completion_number
        if empty:
            return 0
        raise click.ClickException(
            f"{writer.partial}: the store has none of its rollouts as they are written there; "
            "is it another store? --replace begins anew"
        )

    def _options(self, content: str, names: tuple[str, ...]) -> dict[str, Any] | bool:
        """Return the options of triplets or of samples, False if they are not exported."""
        given = self._given
        return bool(given[content]) and {name: given[name] for name in names if given[name]}

    def _run(self, write: Callable[[Any], Any]) -> None:
        given = self._given
        found = self._store.export_rollouts(
            after_completion_number=self._after,
            through_completion_number=self._through,
            statuses=given["status"],
            rollout_ids=given["id"],
            rollout_id_contains=given["id_contains"],
            modes=given["mode"],
            group_ids=given["group"],
            queues=given["queues"],
            labels=given["labels"],
            filter_logic="or" if given["any"] else "and",
            spans=given["spans"] and not given["samples"],
            triplets=self._options("triplets", TRIPLET_OPTIONS),
            samples=self._options("samples", SAMPLE_OPTIONS),
            skip_evicted=given["skip_evicted"],
        )
        with progress("exporting") as show:
            for rollout in found:
                write(rollout)
                self._count(rollout)
                done = rollout.rollout.completion_number - self._after
                told = f"{count(self._rollouts, 'rollout')}, {self._content()}"
                show(done, self._through - self._after, told)
        if given["id"] and not self._rollouts and not given["resume"]:
            raise click.ClickException(
                "no rollout of those that --id names passes the other filters: nothing is written"
            )

    def _count(self, rollout: ExportedRollout) -> None:
        self._rollouts += 1
        self._spans += sum(len(batch.spans) for batch in rollout.batches or ())
        self._samples += sum(map(len, rollout.samples or ()))
        self._warnings += sum(part.warning_count for part in rollout.samples or ())

    def _content(self) -> str:
        if self._given["samples"]:
            return count(self._samples, "sample")
        return count(self._spans, "span")

    def _tell(self) -> None:
        if self._warnings:
            told = f"{count(self._warnings, 'warning')}: `lightningstore samples ROLLOUT` shows those of a rollout"
            click.echo(told, err=True)
        click.echo(
            f"{count(self._rollouts, 'rollout')} and {self._content()}, through completion number "
            f"{self._through}; for what finishes later: --after {self._through}",
            err=True,
        )


class _Begun:
    """The options of an export, kept beside its partial file, so that it is resumed with the same ones."""

    def __init__(self, partial: Path, given: dict[str, Any]) -> None:
        self._partial = partial
        self._path = partial.with_name(f"{partial.name}.options")
        self._given = {name: _plain(given[name]) for name in CONTENT}

    def check(self) -> None:
        """Raise click.ClickException for options other than those of the partial file."""
        again = "--replace begins anew"
        try:
            before = dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            raise click.ClickException(
                f"{self._path}, which says how {self._partial} was begun, is missing: {again}"
            ) from None
        except (ValueError, TypeError) as error:
            raise click.ClickException(f"{self._path}: {error}; {again}") from None
        other = [
            f"{_flag(name)} was {json.dumps(before.get(name))}, now it is {json.dumps(now)}"
            for name, now in self._given.items()
            if before.get(name) != now
        ]
        if other:
            raise click.ClickException(
                f"{self._partial} was begun with other options: {'; '.join(other)}; {again}"
            )

    def write(self) -> None:
        """Keep the options."""
        self._path.write_text(json.dumps(self._given) + "\n")

    def tidy(self) -> None:
        """Remove them if the partial file has gone."""
        if not self._partial.exists():
            self._path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON gives it back; of a list the order says nothing."""
    return sorted(value) if isinstance(value, tuple) else value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_FILE = click.Path(path_type=Path, dir_okay=False)

export_command = click.Command(
    "export",
    callback=_export,
    help=_export.__doc__,
    params=[
        click.Option(["--output", "-o"], type=_FILE, help="File to write. Default: stdout."),
        click.Option(
            ["--format"],
            type=click.Choice(FORMATS),
            help="Default: parquet if the file is named so, else jsonl. Parquet needs pyarrow.",
        ),
        click.Option(
            ["--spans/--no-spans"], default=True, help="Write spans too. Default: --spans."
        ),
        click.Option(
            ["--triplets"], is_flag=True, help="Write triplets of the latest attempt too."
        ),
        click.Option(
            ["--samples"],
            type=click.Choice(WORDS),
            is_flag=False,
            flag_value=OWN_WORDS,
            help="Write only samples, one row of tokens for each, in the words of a trainer: --samples=verl. "
            f"Default words: {OWN_WORDS}.",
        ),
        click.Option(
            ["--after"],
            type=click.IntRange(0, units.MAX_INT64),
            default=0,
            metavar="NUMBER",
            help="Only finishes after this completion number. Default: 0, all.",
        ),
        click.Option(["--resume"], is_flag=True, help="Continue the export that broke off."),
        click.Option(["--replace"], is_flag=True, help="Replace the file if it exists."),
        click.Option(
            ["--status"], multiple=True, type=click.Choice(FINISHED), help="Only these statuses."
        ),
        click.Option(["--id"], multiple=True, metavar="ID", help="Only these rollouts."),
        click.Option(
            ["--id-contains"], default="", metavar="TEXT", help="Only ids with this text."
        ),
        click.Option(
            ["--mode"],
            multiple=True,
            type=click.Choice(enum_words(rollout_pb2.RolloutMode.keys(), "ROLLOUT_MODE_")),
            help="Only these modes.",
        ),
        click.Option(["--group"], multiple=True, metavar="ID", help="Only these groups."),
        queues_option("Only these task queues; '' is the default one."),
        label_option("Only rollouts with this label. May be repeated: with all of them."),
        click.Option(["--any"], is_flag=True, help="Join the filters by or. Default: by and."),
        click.Option(
            ["--skip-evicted"], is_flag=True, help="Leave out rollouts whose spans were evicted."
        ),
        merge_option(),
        *triplet_options(),
        *connection.options(),
    ],
)


def _import(files: tuple[Path, ...], *, rollout_per_trace: bool, **given: Any) -> None:
    """Import FILES that were exported, or OTLP JSON files of the OpenTelemetry collector; - is stdin.

    Rollouts that the store has with the same content are counted as known, so an import may be repeated.
    """
    from lightningstore.service.cli.otlp_file import OtlpFiles, is_otlp  # noqa: PLC0415

    options = connection.take(given)
    with opened(options) as store, ExitStack() as kept:
        otlp = OtlpFiles(store, options, per_trace=rollout_per_trace)
        for given_path in files:
            with _named(given_path):
                path = kept.enter_context(_on_disk(given_path))
                told = otlp.load(path) if is_otlp(path) else _load(store, path)
            click.echo(f"{given_path}: {told}", err=True)
        if told := otlp.make_rollouts():
            click.echo(told, err=True)
    if otlp.took_nothing:
        raise click.ClickException("no span could be taken of what is OTLP")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in errors: there may be several."""
    from lightningstore.client import LightningStoreError  # noqa: PLC0415

    try:
        yield
    except (LightningStoreError, ValueError) as error:
        raise click.ClickException(f"{path}: {error_text(error)}") from None


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """Yield the file, for - a copy of stdin: Parquet is read from its end, and OTLP twice."""
    if str(path) != "-":
        yield path
        return
    with NamedTemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def _load(store: LightningStore, path: Path) -> str:
    from lightningstore.client.datasets import read_dataset  # noqa: PLC0415

    with progress("importing") as show:

        def counted() -> Iterator[Any]:
            for number, rollout in enumerate(read_dataset(path), 1):
                yield rollout
                show(number, None, count(number, "rollout"))

        result = store.import_rollouts(counted())
    return (
        f"{count(result.imported_count, 'rollout')} imported, {result.known_count:,} known; "
        f"{spans_told(result)}"
    )


import_command = click.Command(
    "import",
    callback=_import,
    help=_import.__doc__,
    params=[
        click.Argument(["files"], nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.Option(
            ["--rollout-per-trace"],
            is_flag=True,
            help="Make a finished rollout of each OTLP trace that names no attempt.",
        ),
        *connection.options(),
    ],
)
