"""A database connection whose n-th statement fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
from lightningstore.service.storage.postgres.database import Database

STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval")


@dataclass
class Fault:
    """Counts statements, and names the one that fails."""

    #: The statement that fails, counted from 1; 0: none.
    at: int = 0
    #: Whether it takes effect before its connection breaks.
    takes_effect: bool = False
    #: What it fails with.
    error: type[Exception] = asyncpg.ConnectionDoesNotExistError
    statements: int = 0

    def fails_now(self) -> bool:
        """Count a statement."""
        self.statements += 1
        return self.statements == self.at


class FailingConnection:
    """Passes everything on to a connection, until the statement that fails."""

    def __init__(self, inner: asyncpg.Connection, fault: Fault) -> None:
        self._inner, self._fault = inner, fault

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return self._statement(attribute) if name in STATEMENTS else attribute

    def _statement(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*arguments: Any) -> Any:
            if not self._fault.fails_now():
                return await method(*arguments)
            if self._fault.takes_effect:
                await method(*arguments)
            if issubclass(self._fault.error, asyncpg.PostgresConnectionError):
                self._inner.terminate()
            raise self._fault.error("injected")

        return run


class FailingDatabase(Database):
    """A database whose connections share a fault."""

    def __init__(self, url: str, fault: Fault, **options: Any) -> None:
        super().__init__(url, **options)
        self._fault = fault

    async def _connect(self, settings: dict[str, str]) -> Any:
        return FailingConnection(await super()._connect(settings), self._fault)
