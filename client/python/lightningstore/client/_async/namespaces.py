"""Namespaces, in the asyncio client: create, get, list, update, delete."""

from __future__ import annotations

from collections.abc import Mapping

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import namespaces as calls
from lightningstore.client.values import UNSET, Namespace, Page, Unset


class AsyncNamespaceCalls(AsyncCaller):
    """The calls on the namespaces of a server. Every client can make them, whatever its own namespace is."""

    async def create_namespace(
        self,
        name: str,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        retain_finished: float | None = None,
        max_bytes: int | None = None,
        max_queue_length: int | None = None,
        keep_resource_versions: int | None = None,
        request_id: str | None = None,
    ) -> Namespace:
        """Create a namespace: a store of its own, in which calls take part that name it.

        Args:
            name: 1 to 63 of a-z 0-9 - _ . with a letter or a digit at both ends.
            description: Text for people, at most 1,000 characters.
            labels: At most 32 labels, with keys of 1 to 63 characters and values of at most 63.
            retain_finished: Seconds after which finished rollouts are removed. 0: never. None: as the server is set.
            max_bytes: Bytes above which the oldest finished rollouts are removed. 0: unlimited. None: as the server
                is set.
            max_queue_length: Maximum number of rollouts in the queue. 0: unlimited. None: as the server is set.
            keep_resource_versions: Number of versions that are kept of each resources id, from its next update on. 0:
                all. None: as the server is set.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The namespace.

        Raises:
            AlreadyExistsError: The namespace exists, and another request has created it.
            InvalidArgumentError: The name or a setting is invalid.

        Example:
            await store.create_namespace("run-1", labels={"team": "math"}, max_queue_length=1000)
            print([namespace.name for namespace in await store.list_namespaces()])
            await store.delete_namespace("run-1")
        """
        fields = {
            "description": description,
            "labels": labels,
            "retain_finished": retain_finished,
            "max_bytes": max_bytes,
            "max_queue_length": max_queue_length,
            "keep_resource_versions": keep_resource_versions,
        }
        return await self._send(calls.create_namespace(name, fields, request_id))

    async def get_namespace(self, name: str) -> Namespace:
        """Get one namespace.

        Args:
            name: Name of the namespace.

        Returns:
            The namespace.

        Raises:
            NotFoundError: The namespace does not exist, or the token does not allow it.
        """
        return await self._send(calls.get_namespace(name))

    async def list_namespaces(
        self, *, name_contains: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page[Namespace]:
        """List one page of namespaces, ordered by name. With a limited token, only those that it allows.

        Args:
            name_contains: Only namespaces whose name contains this text. Empty: all.
            page_size: Maximum namespaces in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same filter.

        Returns:
            One page of namespaces.

        Raises:
            InvalidArgumentError: The page token is invalid.
        """
        return await self._send(
            calls.list_namespaces(
                name_contains=name_contains, page_size=page_size, page_token=page_token
            )
        )

    async def update_namespace(
        self,
        name: str,
        *,
        description: str | Unset | None = UNSET,
        labels: Mapping[str, str] | Unset | None = UNSET,
        retain_finished: float | Unset | None = UNSET,
        max_bytes: int | Unset | None = UNSET,
        max_queue_length: int | Unset | None = UNSET,
        keep_resource_versions: int | Unset | None = UNSET,
    ) -> Namespace:
        """Change settings of a namespace. UNSET, the default of each, leaves it unchanged; None clears it.

        Args:
            name: Name of the namespace.
            description: Text for people.
            labels: All labels; they replace the previous ones.
            retain_finished: Seconds after which finished rollouts are removed. 0: never. None: as the server is set.
            max_bytes: Bytes above which the oldest finished rollouts are removed. 0: unlimited. None: as the server
                is set.
            max_queue_length: Maximum number of rollouts in the queue. 0: unlimited. None: as the server is set.
            keep_resource_versions: Number of versions that are kept of each resources id, from its next update on. 0:
                all. None: as the server is set.

        Returns:
            The namespace after the change.

        Raises:
            NotFoundError: The namespace does not exist, or the token does not allow it.
            InvalidArgumentError: A setting is invalid.
        """
        fields = {
            "description": description,
            "labels": labels,
            "retain_finished": retain_finished,
            "max_bytes": max_bytes,
            "max_queue_length": max_queue_length,
            "keep_resource_versions": keep_resource_versions,
        }
        return await self._send(calls.update_namespace(name, fields))

    async def delete_namespace(
        self, name: str, *, force: bool = False, allow_missing: bool = False
    ) -> None:
        """Delete a namespace with everything in it. Calls and waits in it end with NotFoundError.

        Args:
            name: Name of the namespace. "default" cannot be deleted.
            force: Whether it is deleted although attempts are running in it.
            allow_missing: If true, deleting a namespace that does not exist succeeds. If false, a retry after a lost
                response can raise NotFoundError.

        Raises:
            NotFoundError: The namespace does not exist, or the token does not allow it.
            FailedPreconditionError: Attempts are running in the namespace, or it is "default".
        """
        await self._send(calls.delete_namespace(name, force=force, allow_missing=allow_missing))
