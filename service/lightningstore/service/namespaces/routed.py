"""The operations of one namespace for callers in this process, which have no metadata to name it with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import Kind, Operation, table
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE


def table_in(directory: Directory, name: str) -> Mapping[str, Operation]:
    """Return the operation of each method of LightningStoreService in a namespace.

    The operations of another namespace than the default one open its store if necessary, and raise what
    `Directory.find` and opening raise.
    """
    assert directory.default is not None  # noqa: S101  (stores in this process are those of a single server)
    default = table(directory.default)
    if name == DEFAULT_NAMESPACE:
        return default
    routed = _Routed(directory, name)
    return {
        method: operation._replace(call=routed.call(method, operation.kind))
        for method, operation in default.items()
    }


class _Routed:
    """Makes operations that look up their store with every call."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._store: Store | None = None
        self._table: Mapping[str, Operation] = {}

    def call(self, method: str, kind: Kind) -> Callable[..., Any]:
        """Return the operation of a method."""

        async def answer(*arguments: Any) -> Any:
            async with self._directory.use(self._directory.find(self._name)) as store:
                return await self._bound(store)[method].call(*arguments)

        async def stream(*arguments: Any) -> AsyncIterator[Any]:
            async with (
                self._directory.use(self._directory.find(self._name)) as store,
                aclosing(self._bound(store)[method].call(*arguments)) as answers,
            ):
                async for item in answers:
                    yield item

        return stream if kind is Kind.SERVER_STREAM else answer

    def _bound(self, store: Store) -> Mapping[str, Operation]:
        """Return the operations of the open store, made once each time it is opened."""
        if self._store is not store:
            self._store, self._table = store, table(store)
        return self._table
