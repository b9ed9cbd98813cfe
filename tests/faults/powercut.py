"""What is left of a file after a power cut: what was synced, and any part of what was not.

The shim writes down every change and every sync of a server's data file. Any point of that journal is a
moment at which the power may have gone; the disk is put together as it may have been then: each sector of
512 bytes that was written after the last sync of its file is there or is not. Directories are taken to be
synced: what was unlinked or renamed stays so.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
RECORD = struct.Struct("=cc2xIQQ")  # as in shim.c
#: Of the data file and what is beside it; capitals stand for the draft of a new one.
ENDINGS = {"d": "", "w": "-wal", "j": "-journal"}
LETTERS = "dwjDWJ"


class Event(NamedTuple):
    """A change (W write, T truncate, U unlink, R rename of the draft) or a sync (S) of a file. Nanoseconds."""

    what: str
    file: str
    at: int
    time: int
    data: bytes


def journal(path: Path) -> Iterator[Event]:
    """Yield what the shim wrote down. A record that a kill cut short is left out."""
    text = path.read_bytes()
    place = 0
    while place + RECORD.size <= len(text):
        what, file, size, at, time = RECORD.unpack_from(text, place)
        place += RECORD.size + size
        if place <= len(text):
            yield Event(what.decode(), file.decode(), at, time, text[place - size : place])


class Disk:
    """The files of a store: what is surely on disk of each, and what was written since."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._synced = {file: bytearray(data) for file, data in files.items()}
        self._unsynced: dict[str, list[Event]] = {file: [] for file in LETTERS}

    def apply(self, event: Event) -> None:
        """Go on by one event."""
        waiting = self._unsynced[event.file]
        if event.what == "U":
            waiting.clear()
            self._synced.pop(event.file, None)
        elif event.what == "R":
            self._synced["d"] = self._synced.pop("D", bytearray())
            self._unsynced["d"], self._unsynced["D"] = waiting, []
        elif event.what == "S":
            image = self._synced.setdefault(event.file, bytearray())
            for written in waiting:
                _write(image, written)
            waiting.clear()
        else:
            waiting.append(event)

    def cut(self, dice: random.Random) -> dict[str, bytes]:
        """Return the files as a power cut at this moment may leave them."""
        files = {}
        for file, waiting in self._unsynced.items():
            if file not in self._synced and not waiting:
                continue
            image = bytearray(self._synced.get(file, b""))
            kept = dice.choice([0.0, 0.5, 0.95, 1.0])
            for event in waiting:
                for part in _sectors(event):
                    if dice.random() < kept:
                        _write(image, part)
            files[file] = bytes(image)
        return files


def _sectors(event: Event) -> Iterator[Event]:
    if event.what == "T":
        yield event
        return
    place, end = event.at, event.at + len(event.data)
    while place < end:
        border = min(end, (place // SECTOR + 1) * SECTOR)
        yield event._replace(at=place, data=event.data[place - event.at : border - event.at])
        place = border


def _write(image: bytearray, event: Event) -> None:
    size = event.at if event.what == "T" else event.at + len(event.data)
    if len(image) < size:
        image.extend(bytes(size - len(image)))
    if event.what == "T":
        del image[size:]
    else:
        image[event.at : size] = event.data


def put(files: dict[str, bytes], path: Path) -> None:
    """Make these the files of the store at `path`, and leave no others."""
    draft = path.with_name(f".{path.name}.new")
    for name in (path, draft):
        for ending in (*ENDINGS.values(), "-shm"):
            Path(f"{name}{ending}").unlink(missing_ok=True)
    for file, data in files.items():
        name = draft if file.isupper() else path
        Path(f"{name}{ENDINGS[file.lower()]}").write_bytes(data)
