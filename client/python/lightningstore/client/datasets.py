"""Files of exported rollouts: JSON lines and Parquet. `docs/datasets.md` describes the formats.

Example:
    with DatasetWriter("train.jsonl") as writer:
        for rollout in store.export_rollouts(triplets=True):
            writer.write(rollout)
    store.import_rollouts(read_dataset("train.jsonl"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from lightningstore.client._datasets import rows, samples
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client._datasets.lines import read_lines
from lightningstore.client._datasets.selection import attempts_at_hand
from lightningstore.client._values.rollouts import ROLLOUT_STATUS
from lightningstore.client.message_json import time_text, word
from lightningstore.client.values import AttemptSamples, Rollout

__all__ = [
    "TRAINERS",
    "DatasetWriter",
    "ExportedRollout",
    "SampleWriter",
    "Written",
    "attempts_at_hand",
    "decode",
    "encode",
    "encode_samples",
    "read_dataset",
    "read_lines",
    "samples_to_json",
    "triplet_to_json",
]

encode = rows.encode
decode = rows.decode
triplet_to_json = rows.triplet_to_json
#: Trainers whose words samples can have.
TRAINERS = samples.TRAINERS
#: Suffix of a file that is being written.
PARTIAL = ".partial"
_BLOCK = 1 << 20


class Written:
    """A rollout in a file, for comparison with the store.

    Args:
        line: The line of the rollout.

    Attributes:
        rollout_id: Id of the rollout.

    Raises:
        ValueError: The line is not an exported rollout.
    """

    def __init__(self, line: bytes) -> None:
        row = rows.row_of(line)
        self.rollout_id: str = row["rollout_id"]
        self._finish = tuple(row.get(key) for key in ("status", "end_time", "attempt_count"))

    def is_the_same_finish(self, rollout: Rollout) -> bool:
        """Tell whether the rollout in the store has the finish that the file has.

        Args:
            rollout: The rollout in the store.

        Returns:
            False if the rollout was reopened, or has finished again, since the export.
        """
        record = rollout.message
        return self._finish == (
            word(ROLLOUT_STATUS, record.status),
            time_text(record.end_time) if record.HasField("end_time") else None,
            record.attempt_count,
        )


def _rollouts_to_parquet(lines: BinaryIO, file: BinaryIO) -> None:
    from lightningstore.client._datasets import parquet  # noqa: PLC0415

    parquet.convert(lines, file)


def _samples_to_parquet(lines: BinaryIO, file: BinaryIO, trainer: str) -> None:
    from lightningstore.client._datasets import sample_parquet  # noqa: PLC0415

    sample_parquet.convert(lines, file, trainer)


class _Writer:
    """Writes a file of JSON lines or Parquet, which gets its name when it is complete."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        parquet: bool | None,
        replace: bool,
        convert: Callable[[BinaryIO, BinaryIO], None],
        resume: bool = False,
        may_resume: bool = False,
    ) -> None:
        """`convert` writes the lines of a file as Parquet. `may_resume`: whether a partial file is of use."""
        self._convert = convert
        self._may_resume = may_resume
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._parquet = self.path.suffix == ".parquet" if parquet is None else parquet
        if self._parquet:
            import lightningstore.client._datasets.parquet  # noqa: F401, PLC0415  (says what is missing)
        if not replace:
            if self.path.exists():
                raise FileExistsError(f"{self.path} exists already")
            if self.partial.exists() and not resume:
                raise FileExistsError(f"{self.partial} exists, from an export that was interrupted")
        self._file: BinaryIO = self.partial.open(
            "r+b" if resume and self.partial.exists() else "w+b"
        )
        self._cut_torn_line()
        self.count = 0

    def _cut_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        if kind is None:
            self._finish()
        elif not size or not self._may_resume:
            self.partial.unlink()  # else the same work, put right, would find it in its way

    def _finish(self) -> None:
        if not self._parquet:
            self.partial.replace(self.path)
            return
        made = self.path.with_name(self.path.name + ".making")
        with self.partial.open("rb") as lines, made.open("wb") as file:
            self._convert(lines, file)
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.path)
        self.partial.unlink()


class DatasetWriter(_Writer):
    """Writes a file of rollouts, as a context manager. The file gets its name when it is complete.

    Until then it is called PATH.partial and has JSON lines. After an error that file is kept, unless it is empty, and
    can be continued. Parquet is converted from it at the end.

    Args:
        path: The file.
        parquet: Whether to write Parquet. None: if the name ends in ".parquet".
        resume: Whether to continue a partial file. `written` yields its content.
        replace: Whether to overwrite existing files.

    Attributes:
        path: The file.
        partial: The file while it is being written.
        count: Number of rollouts written by this object.

    Raises:
        FileExistsError: A file exists, and neither `resume` nor `replace` is set.
        ImportError: Parquet requires pyarrow: `pip install 'lightningstore[parquet]'`.

    Example:
        with DatasetWriter("train.jsonl", replace=True) as writer:
            for rollout in store.export_rollouts(triplets=True):
                writer.write(rollout)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        parquet: bool | None = None,
        resume: bool = False,
        replace: bool = False,
    ) -> None:
        super().__init__(
            path,
            parquet=parquet,
            replace=replace,
            convert=_rollouts_to_parquet,
            resume=resume,
            may_resume=True,
        )

    def written(self) -> Iterator[Written]:
        """Read the rollouts that a resumed file has. Do not write while iterating.

        Yields:
            The rollouts, the last one first.

        Raises:
            ValueError: A line is not an exported rollout.
        """
        end = self._file.seek(0, os.SEEK_END)
        tail = b""
        while end:
            start = max(0, end - _BLOCK)
            self._file.seek(start)
            lines = (self._file.read(end - start) + tail).splitlines(keepends=True)
            tail = lines.pop(0) if start else b""
            for line in reversed(lines):
                yield Written(line)
            end = start
        self._file.seek(0, os.SEEK_END)

    def write(self, rollout: ExportedRollout) -> None:
        """Append a rollout.

        Args:
            rollout: What `export_rollouts` yields.
        """
        self._file.write(encode(rollout))
        self.count += 1


class SampleWriter(_Writer):
    """Writes a file of samples, one row for each, as a context manager. The file gets its name when it is complete.

    Until then it is called PATH.partial and has JSON lines. After an error that file is removed. Parquet is converted
    from it at the end.

    Args:
        path: The file.
        trainer: Trainer whose words the columns have: "trl", "verl", "skyrl", "slime", "prime-rl", "art" or "tinker".
            Empty: the words of this project.
        parquet: Whether to write Parquet. None: if the name ends in ".parquet".
        replace: Whether to overwrite existing files.

    Attributes:
        path: The file.
        partial: The file while it is being written.
        count: Number of samples written.

    Raises:
        ValueError: The trainer is unknown.
        FileExistsError: A file exists, and `replace` is not set.
        ImportError: Parquet requires pyarrow: `pip install 'lightningstore[parquet]'`.

    Example:
        with SampleWriter("rows.jsonl", trainer="verl", replace=True) as writer:
            for rollout in store.export_rollouts(spans=False, samples=True):
                for attempt in rollout.samples:
                    writer.write(attempt)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trainer: str = "",
        parquet: bool | None = None,
        replace: bool = False,
    ) -> None:
        if trainer not in samples.WORDS:
            raise ValueError(
                f"trainer must be one of {', '.join(samples.TRAINERS)}, not {trainer!r}"
            )
        self._trainer = trainer
        convert = partial(_samples_to_parquet, trainer=trainer)
        super().__init__(path, parquet=parquet, replace=replace, convert=convert)

    def write(self, attempt: AttemptSamples) -> None:
        """Append the samples of an attempt.

        Args:
            attempt: What `list_samples` yields.
        """
        for row in samples.rows_of([attempt]):
            self._file.write(samples.encode(row, self._trainer))
            self.count += 1


def encode_samples(attempt: AttemptSamples, trainer: str = "") -> bytes:
    """Encode the samples of an attempt as lines of JSON.

    Args:
        attempt: What `list_samples` yields.
        trainer: Trainer whose words the keys are, as for `SampleWriter`.

    Returns:
        One line for each sample, in UTF-8.
    """
    return b"".join(samples.encode(row, trainer) for row in samples.rows_of([attempt]))


def samples_to_json(attempt: AttemptSamples) -> list[dict[str, Any]]:
    """Convert the samples of an attempt to JSON values, with the keys that they have in an export.

    Args:
        attempt: What `list_samples` yields.

    Returns:
        A JSON object for each sample.
    """
    return [samples.to_json(row) for row in samples.rows_of([attempt])]


def read_dataset(path: str | os.PathLike[str]) -> Iterator[ExportedRollout]:
    """Read the rollouts of an exported file, without their triplets.

    The format is recognised from the content of the file. JSON lines may be compressed with gzip.

    Args:
        path: The file.

    Yields:
        The rollouts, as `import_rollouts` takes them.

    Raises:
        ValueError: The content is invalid. The error names the line or row.
        ImportError: Parquet requires pyarrow: `pip install 'lightningstore[parquet]'`.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        from lightningstore.client._datasets import parquet  # noqa: PLC0415

        yield from parquet.read(path)
        return
    for number, line in read_lines(path):
        try:
            yield decode(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
