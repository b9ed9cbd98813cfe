"""The lines of a JSON lines file, which may be compressed with gzip."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines of a file that are not blank.

    Args:
        path: The file, which may be compressed with gzip.

    Yields:
        The number of the line, from 1, and its bytes.

    Raises:
        ValueError: The file cannot be decompressed, or is compressed with zstd.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(8)
    if _ZSTD in head:  # the collector writes a length before it
        raise ValueError(
            "the file is compressed with zstd: use JSON lines, plain or compressed with gzip"
        )
    number = 0
    with gzip.open(path) if head.startswith(_GZIP) else Path(path).open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"line {number + 1}: gzip cannot decompress the file: {error}"
            ) from None
