"""`lightningstore export` and `import`: finished rollouts into a file, and out of one into a store."""

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
from lightningstore.service.cli.connection import SECURITY, options
from lightningstore.v1 import rollout_pb2, triplet_pb2

if TYPE_CHECKING:
    # At run time it is imported where it is used: it brings OpenTelemetry's SDK, which `serve` does not need.
    from lightningstore.client import ImportResult, LightningStore
    from lightningstore.client.datasets import DatasetWriter

FORMATS = ("jsonl", "parquet")
FINISHED = ("succeeded", "failed", "cancelled")
#: Seconds that a call may take, its retries included.
DEADLINE = 60.0
#: What triplets are made by, and what else says what an export holds.
TRIPLET_OPTIONS = (
    "source",
    "llm_call_match",
    "agent_match",
    "skip_without_tokens",
    "reward_policy",
)
CONTENT = (
    *("spans", "triplets", *TRIPLET_OPTIONS, "skip_evicted", "after"),
    *("status", "id", "id_contains", "mode", "group", "any"),
)


@contextmanager
def opened(address: str, **security: Any) -> Iterator[LightningStore]:
    """Connect to a server; what goes wrong becomes one line."""
    from lightningstore.client import LightningStore, LightningStoreError  # noqa: PLC0415

    try:
        with LightningStore(address, timeout=DEADLINE, **security) as store:
            store.get_server_info()
            yield store
    except LightningStoreError as error:
        raise click.ClickException(str(error)) from None
    except BrokenPipeError:
        raise SystemExit(1) from None  # whoever read stdout has enough
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def progress(what: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """Show on a terminal how far it is: the function takes what is done, out of how much, and a text."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    bar = Progress(
        *Progress.get_default_columns()[:2],
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None, told="")
        yield lambda done, total, told: bar.update(task, completed=done, total=total, told=told)


def _words(enum: Any, prefix: str) -> list[str]:
    return [name[len(prefix) :].lower() for name in enum.keys()[1:]]


def _export(address: str, **given: Any) -> None:
    """Write finished rollouts to a file, in the order in which they finished.

    The filters are joined by and, unless --any. While it is written the file is called FILE.partial; if the
    work breaks off, the same command with --resume goes on with it.
    """
    security = {name: given.pop(name) for name in SECURITY}
    target: Path | None = given.pop("output")
    if str(target) == "-":
        target = None
    if target is None and (given["format"] == "parquet" or given["resume"]):
        raise click.ClickException("--format parquet and --resume need --output FILE")
    idle = [_flag(name) for name in TRIPLET_OPTIONS if given[name]]
    if idle and not given["triplets"]:
        raise click.ClickException(f"without --triplets there is no use for {', '.join(idle)}")
    if given["triplets"]:
        given["source"] = given["source"] or "tracer"
    with opened(address, **security) as store:
        export = _Export(store, given)
        export.check_ids()
        if target is None:
            export.to_stdout()
        else:
            export.to_file(target)


class _Export:
    """One export, by the options of the command."""

    def __init__(self, store: LightningStore, given: dict[str, Any]) -> None:
        self._store = store
        self._given = given
        self._after: int = given["after"]
        self._through = store.get_statistics().last_completion_number
        self._rollouts = self._spans = 0

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
        from lightningstore.client.datasets import encode  # noqa: PLC0415

        out = sys.stdout.buffer
        self._run(lambda rollout: out.write(encode(rollout)))
        out.flush()
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

    def _options(self) -> dict[str, Any] | None:
        given = self._given
        if not given["triplets"]:
            return None
        return {name: given[name] for name in TRIPLET_OPTIONS if given[name]}

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
            filter_logic="or" if given["any"] else "and",
            spans=given["spans"],
            triplets=self._options() or given["triplets"],
            skip_evicted=given["skip_evicted"],
        )
        with progress("exporting") as show:
            for rollout in found:
                write(rollout)
                self._rollouts += 1
                self._spans += sum(len(batch.spans) for batch in rollout.batches or ())
                done = rollout.rollout.completion_number - self._after
                told = f"{self._rollouts:,} rollouts, {self._spans:,} spans"
                show(done, self._through - self._after, told)
        if given["id"] and not self._rollouts and not given["resume"]:
            raise click.ClickException(
                "no rollout of those that --id names passes the other filters: nothing is written"
            )

    def _tell(self) -> None:
        click.echo(
            f"{self._rollouts} rollouts and {self._spans} spans, through completion number "
            f"{self._through}; for what finishes later: --after {self._through}",
            err=True,
        )


class _Begun:
    """The options of an export, kept beside its partial file, so that nobody goes on with other ones."""

    def __init__(self, partial: Path, given: dict[str, Any]) -> None:
        self._partial = partial
        self._path = partial.with_name(f"{partial.name}.options")
        self._given = {name: _plain(given[name]) for name in CONTENT}

    def check(self) -> None:
        """Refuse options that are not those with which the partial file was begun."""
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
        *options(),
        click.Option(["--output", "-o"], type=_FILE, help="File to write; without it stdout."),
        click.Option(
            ["--format"],
            type=click.Choice(FORMATS),
            help="Default: by the name of the file, else jsonl. Parquet needs pyarrow.",
        ),
        click.Option(["--spans/--no-spans"], default=True, help="With spans, as by default."),
        click.Option(["--triplets"], is_flag=True, help="With triplets of the latest attempt."),
        click.Option(["--after"], type=click.IntRange(0), default=0, help="Completion number."),
        click.Option(["--resume"], is_flag=True, help="Go on where the last one broke off."),
        click.Option(["--replace"], is_flag=True, help="Write over a file that is there."),
        click.Option(["--status"], multiple=True, type=click.Choice(FINISHED)),
        click.Option(["--id"], multiple=True, help="Only these rollouts."),
        click.Option(["--id-contains"], default="", help="Only ids with this in them."),
        click.Option(
            ["--mode"],
            multiple=True,
            type=click.Choice(_words(rollout_pb2.RolloutMode, "ROLLOUT_MODE_")),
        ),
        click.Option(["--group"], multiple=True, help="Only these groups."),
        click.Option(["--any"], is_flag=True, help="What passes one filter, not all."),
        click.Option(["--skip-evicted"], is_flag=True, help="Leave out rollouts without spans."),
        click.Option(
            ["--source"],
            type=click.Choice(_words(triplet_pb2.TripletSource, "TRIPLET_SOURCE_")),
            help="Of triplets, as the options below; default tracer.",
        ),
        click.Option(["--llm-call-match"], default="", help="Names of calls, as RE2."),
        click.Option(["--agent-match"], default="", help="Names of agents, as RE2."),
        click.Option(["--skip-without-tokens"], is_flag=True),
        click.Option(
            ["--reward-policy"],
            type=click.Choice(_words(triplet_pb2.RewardPolicy, "REWARD_POLICY_")),
        ),
    ],
)


def _import(
    address: str, files: tuple[Path, ...], *, rollout_per_trace: bool, **given: Any
) -> None:
    """Bring exported FILES into the store, or OTLP JSON files of the OpenTelemetry collector; - is stdin.

    What is there already with the same content is known, so an import may be repeated.
    """
    from lightningstore.service.cli.otlp_file import OtlpFiles, is_otlp  # noqa: PLC0415

    with opened(address, **given) as store, ExitStack() as kept:
        otlp = OtlpFiles(store, address, given, per_trace=rollout_per_trace)
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
    """Let errors name the file, of which there may be several."""
    from lightningstore.client import LightningStoreError  # noqa: PLC0415

    try:
        yield
    except (LightningStoreError, ValueError) as error:
        raise click.ClickException(f"{path}: {error}") from None


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
                show(number, None, f"{number:,} rollouts")

        result = store.import_rollouts(counted())
    return (
        f"{result.imported_count} rollouts imported, {result.known_count} known; "
        f"{spans_told(result)}"
    )


def spans_told(result: ImportResult) -> str:
    """Return what became of the spans of an import."""
    told = f"{result.accepted_span_count} spans stored, {result.duplicate_span_count} known"
    if result.conflict_span_count:
        told += (
            f", {result.conflict_span_count} refused: another span of the attempt has their span_id"
        )
    return told


import_command = click.Command(
    "import",
    callback=_import,
    help=_import.__doc__,
    params=[
        click.Argument(["files"], nargs=-1, required=True, type=click.Path(path_type=Path)),
        *options(),
        click.Option(
            ["--rollout-per-trace"],
            is_flag=True,
            help="Make a finished rollout of each OTLP trace that names no attempt.",
        ),
    ],
)
