"""Detects that an open data file was moved, deleted or truncated, and says where its data is."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from lightningstore.service.rules.errors import DataFileLost, StorageUnusable

MOUNTS = Path("/proc/self/mountinfo")


class FileLocation:
    """An open data file and the path at which it was opened.

    SQLite continues with the file that it has opened, wherever that is. After the file was deleted, it would accept
    every write, and all of them would be lost when the process ends.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take the path, and a descriptor of the file that stays open while this object is used."""
        self._path = path.absolute()
        self._descriptor = descriptor
        self._bytes = os.fstat(descriptor).st_size
        self._log = _identity(self.log)

    @property
    def log(self) -> Path:
        """The file's write-ahead log."""
        return Path(f"{self._path}-wal")

    def check(self, *, log: bool = True) -> None:
        """Raise DataFileLost if the file was moved, deleted or truncated; with `log`, also if its log was.

        Three system calls: 5 us.
        """
        held = os.fstat(self._descriptor)
        if _identity(self._path) != (held.st_dev, held.st_ino):
            raise DataFileLost(self._moved(held))
        if held.st_size < self._bytes:
            raise DataFileLost(
                f"{self._path} was cut short under the running server, from {self._bytes} to "
                f"{held.st_size} bytes. Stop the server and restore a backup"
            )
        self._bytes = held.st_size
        if log:
            there = _identity(self.log)
            self._log = self._log or there  # the first write creates it
            if there != self._log:
                raise DataFileLost(
                    f"{self.log}, the log of the data file, was removed or replaced under the running server"
                )

    @property
    def is_deleted(self) -> bool:
        """Whether the file has no name, so that its data ends with this process."""
        return os.fstat(self._descriptor).st_nlink == 0

    @property
    def is_cut_short(self) -> bool:
        """Whether the file was truncated."""
        return os.fstat(self._descriptor).st_size < self._bytes

    def _moved(self, held: os.stat_result) -> str:
        """Return what happened to the file, where its data is, and what to do."""
        own = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        other = " (another file is there now)" if self._path.exists() else ""
        if held.st_nlink == 0:
            return (
                f"the data file {self._path} was deleted under the running server{other}. Its data is kept "
                f"until the server ends: copy it (cp {own} RESCUED.db), stop the server, and start it "
                "on the copy"
            )
        try:
            where = f"it is {os.readlink(own)} now"  # noqa: PTH115  (the kernel's answer, as it is)
        except OSError:
            where = f"it has inode {held.st_ino} of device {held.st_dev}"
        return (
            f"the data file {self._path} was moved under the running server{other}: {where}. Move it back, "
            "and the server goes on; or stop the server, and start it on the file where it is"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a path, None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_single_mount(path: Path, mounts: Path = MOUNTS) -> None:
    """Reject a file that is a mount point, as a single file mounted into a container is. Raises StorageUnusable.

    Its log would be next to the mount point, in a layer that is removed with the container. The last answered writes
    would be lost with it.
    """
    place = path.resolve()
    if str(place) in _mounted(mounts) and stat.S_ISREG(place.stat().st_mode):
        raise StorageUnusable(
            f"{path} is mounted by itself, so its log {place.name}-wal would be outside of the mount and lost "
            "with the container: mount the folder that holds it"
        )


def _mounted(mounts: Path) -> set[str]:
    """Return all mount points. Source: proc_pid_mountinfo(5); there is no such file but on Linux."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    points = [fields[4] for fields in map(str.split, lines) if len(fields) > 4]
    return {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point) for point in points}
