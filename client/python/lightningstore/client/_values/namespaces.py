"""Namespaces."""

from __future__ import annotations

from datetime import datetime

from lightningstore.client._values import convert
from lightningstore.client._values.view import View
from lightningstore.v1 import namespace_pb2


class Namespace(View[namespace_pb2.Namespace]):
    """A complete, isolated store of a server, and its settings. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("name", "description")

    @property
    def name(self) -> str:
        """Name of the namespace."""
        return self.message.name

    @property
    def description(self) -> str:
        """Text for people. May be empty."""
        return self.message.description

    @property
    def labels(self) -> dict[str, str]:
        """Labels chosen by the caller. May be empty."""
        return dict(self.message.labels)

    @property
    def create_time(self) -> datetime | None:
        """Time at which it was created, in UTC. None for "default" in a store that is older than namespaces."""
        return self._time("create_time")

    @property
    def update_time(self) -> datetime | None:
        """Time at which its settings were last changed, in UTC. None: never."""
        return self._time("update_time")

    @property
    def store_id(self) -> str:
        """Id of its store. Empty in lists if its storage cannot be read."""
        return self.message.store_id

    @property
    def retain_finished(self) -> float | None:
        """Seconds after which finished rollouts are removed. 0: never. None: as the server is set."""
        if not self.message.HasField("retain_finished"):
            return None
        return convert.from_duration(self.message.retain_finished)

    @property
    def max_bytes(self) -> int | None:
        """Bytes above which the oldest finished rollouts are removed. 0: unlimited. None: as the server is set."""
        return self.message.max_bytes if self.message.HasField("max_bytes") else None

    @property
    def max_queue_length(self) -> int | None:
        """Maximum number of rollouts in the queue. 0: unlimited. None: as the server is set."""
        return self.message.max_queue_length if self.message.HasField("max_queue_length") else None

    @property
    def keep_resource_versions(self) -> int | None:
        """Number of versions that are kept of each resources id. 0: all. None: as the server is set."""
        if not self.message.HasField("keep_resource_versions"):
            return None
        return self.message.keep_resource_versions
