"""Versions of resources: which are stored, which is the latest, and which live attempts use."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from operator import attrgetter

from lightningstore.service.rules.ids import LATEST
from lightningstore.service.rules.rows import ResourcesVersion
from lightningstore.v1.attempt_pb2 import Attempt

_NUMBER = attrgetter("publish_number")


class Versions:
    """The stored versions of resources, without their contents, which may be large."""

    def __init__(self, stored: Iterable[ResourcesVersion] = ()) -> None:
        #: By id, oldest first.
        self._by_id: dict[str, list[ResourcesVersion]] = {}
        self._by_number: dict[int, ResourcesVersion] = {}
        self._numbers: list[int] = []  # ascending
        #: Live attempts, by key, of each version that they were claimed with.
        self._users: dict[tuple[str, int], set[int]] = {}
        self._last_key = 0
        for version in sorted(stored, key=_NUMBER):
            self.add(version)

    def __contains__(self, resources_id: str) -> bool:
        return resources_id in self._by_id

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._by_id)

    @property
    def latest(self) -> ResourcesVersion | None:
        """The version that was published last, None if there is none."""
        return self._by_number[self._numbers[-1]] if self._numbers else None

    def current(self, resources_id: str) -> ResourcesVersion | None:
        """Return the current version of an id, or the latest of all; None if there is none."""
        if resources_id in ("", LATEST):
            return self.latest
        versions = self._by_id.get(resources_id)
        return versions[-1] if versions else None

    def find(self, resources_id: str, version: int) -> ResourcesVersion | None:
        """Return a stored version of an id, None if it is not stored."""
        versions = self._by_id.get(resources_id, ())
        return next((known for known in reversed(versions) if known.version == version), None)

    def numbered(self, publish_number: int) -> ResourcesVersion | None:
        """Return a stored version by its publish number, None if it is not stored."""
        return self._by_number.get(publish_number)

    def after(self, publish_number: int) -> ResourcesVersion | None:
        """Return the first stored version with a higher publish number, None if there is none."""
        at = bisect_right(self._numbers, publish_number)
        return self._by_number[self._numbers[at]] if at < len(self._numbers) else None

    def next(self, resources_id: str, publish_number: int) -> ResourcesVersion:
        """Return the version that an update of an id creates, which is not added yet."""
        current = self._by_id.get(resources_id, (ResourcesVersion("", self._last_key + 1, 0, 0),))
        key, version = current[-1].key, current[-1].version + 1
        return ResourcesVersion(resources_id, key, version, publish_number)

    def add(self, version: ResourcesVersion) -> None:
        """Add a version, which becomes the current one of its id."""
        self._by_id.setdefault(version.resources_id, []).append(version)
        if version.publish_number not in self._by_number:
            insort(self._numbers, version.publish_number)
        self._by_number[version.publish_number] = version
        self._last_key = max(self._last_key, version.key)

    def drop_outdated(self, resources_id: str, keep: int) -> list[int]:
        """Drop versions of an id beyond the newest `keep` (0: all are kept); returns their publish numbers.

        Versions that live attempts use stay, until an update after the last of these attempts has ended.
        """
        versions = self._by_id[resources_id]
        if not keep or len(versions) <= keep:
            return []
        outdated = [
            version
            for version in versions[:-keep]
            if (resources_id, version.version) not in self._users
        ]
        for version in outdated:
            versions.remove(version)
            if self._by_number.get(version.publish_number) is version:
                del self._by_number[version.publish_number]
                del self._numbers[bisect_right(self._numbers, version.publish_number) - 1]
        return [version.publish_number for version in outdated]

    def hold(self, key: int, attempt: Attempt) -> None:
        """Keep the version of an attempt that is live."""
        if attempt.resources_version:
            used = (attempt.resources_id, attempt.resources_version)
            self._users.setdefault(used, set()).add(key)

    def release(self, key: int, attempt: Attempt) -> None:
        """Record that an attempt has ended."""
        used = (attempt.resources_id, attempt.resources_version)
        users = self._users.get(used)
        if users is not None:
            users.discard(key)
            if not users:
                del self._users[used]
