"""Files of exported rollouts: JSON lines and Parquet. `docs/datasets.md` describes the formats.

Example:
    with DatasetWriter("train.jsonl") as writer:
        for rollout in store.export_rollouts(triplets=True):
            writer.write(rollout)
    store.import_rollouts(read_dataset("train.jsonl"))
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lightningstore.client._datasets import rows
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client._datasets.lines import read_lines
from lightningstore.client._datasets.selection import attempts_at_hand
from lightningstore.client._values.rollouts import ROLLOUT_STATUS
from lightningstore.client.message_json import time_text, word
from lightningstore.client.values import Rollout

__all__ = [
    "DatasetWriter",
    "ExportedRollout",
    "Written",
    "attempts_at_hand",
    "decode",
    "encode",
    "read_dataset",
    "read_lines",
    "triplet_to_json",
]

encode = rows.encode
decode = rows.decode
triplet_to_json = rows.triplet_to_json
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


class DatasetWriter:
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

    def __enter__(self) -> DatasetWriter:  # noqa: PYI034
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
        elif not size:
            self.partial.unlink()  # else the same work, put right, would find it in its way

    def _finish(self) -> None:
        if not self._parquet:
            self.partial.replace(self.path)
            return
        from lightningstore.client._datasets import parquet  # noqa: PLC0415

        made = self.path.with_name(self.path.name + ".making")
        with self.partial.open("rb") as lines, made.open("wb") as file:
            parquet.convert(lines, file)
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.path)
        self.partial.unlink()


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
