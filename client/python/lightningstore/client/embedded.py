"""A store in this process, without a server: the same methods over the same engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from lightningstore.client._async.store import AsyncLightningStore
from lightningstore.client._transport.methods import answer_type
from lightningstore.client.connection import DEFAULT_TIMEOUT
from lightningstore.client.errors import (
    DeadlineExceededError,
    InternalError,
    LightningStoreError,
    from_status,
)

#: The event loop gets a turn after so many calls in a row.
CALLS_A_TURN = 64
MISSING = (
    "open_store needs the server's parts, which are not installed: "
    "pip install 'lightningstore[server]'"
)


@asynccontextmanager
async def open_store(
    url: str, *, timeout: float | None = DEFAULT_TIMEOUT, clock: Any = None, **options: Any
) -> AsyncIterator[AsyncLightningStore]:
    """Open a store in this process, to be used as `async with`.

    `url`: "memory://", "sqlite:///relative/path.db" or "sqlite:////absolute/path.db"; a file that is not
    there yet is created, and one that a server or another process has open is refused. `timeout`: deadline
    of a call in seconds, None: none. `options` are those of `lightningstore serve` with underscores,
    `durability="relaxed"` for instance. `clock` is for tests.

    Raises ImportError if the server's parts are not installed, ValueError for another url or an unknown
    option, and `lightningstore.service.rules.errors.StorageUnusable` for a file that cannot be used.
    """
    backend, path = _parse(url)
    try:
        from lightningstore.service.server.config import Config  # noqa: PLC0415
        from lightningstore.service.server.server import open_store as open_service  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(MISSING) from error
    unknown = sorted(set(options) - set(Config.model_fields))
    if unknown:
        raise ValueError(f"no such option: {', '.join(unknown)}")
    options["backend"] = backend
    if path:
        options["db"] = path
    service = await open_service(Config(**options), clock)
    store = store_over(service, timeout=timeout)
    try:
        yield store
    finally:
        await store.close()
        await service.close()


def store_over(service: Any, *, timeout: float | None = DEFAULT_TIMEOUT) -> AsyncLightningStore:
    """Return a client of a `lightningstore.service.operations.store.Store`, which stays its owner's to close."""
    from lightningstore.service.operations.table import table  # noqa: PLC0415

    return AsyncLightningStore.over(StoreTransport(table(service)), timeout=timeout)


def _parse(url: str) -> tuple[str, str]:
    if url in ("memory://", "memory:"):
        return "memory", ""
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return "sqlite", url[len("sqlite:///") :]
    raise ValueError(f'"memory://" or "sqlite:///path/to/file.db" is wanted, not {url!r}')


def _error(error: Exception) -> LightningStoreError:
    """Return what the same error would be over gRPC."""
    from lightningstore.service.rpc.status import to_status  # noqa: PLC0415
    from lightningstore.service.rules.errors import StoreError  # noqa: PLC0415

    if isinstance(error, LightningStoreError):
        return error
    if isinstance(error, StoreError):
        return from_status(to_status(error))
    return InternalError(f"{type(error).__name__}: {error}", reason="ERROR_REASON_INTERNAL")


class StoreTransport:
    """Carries calls into a store on this event loop.

    Messages are serialised both ways, as gRPC would: records of the store must not be the caller's.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        #: `Operation`s by the contract's method names.
        self._table = table
        self._closed = False
        self._calls = 0

    def _operation(self, method: str) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        return self._table[method]

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one message each way."""
        operation = self._operation(method)
        self._calls += 1
        if self._calls % CALLS_A_TURN == 0:
            # A call that need not wait does not suspend: without this a loop of them would keep the
            # watchdog, and everybody else, from the event loop.
            await asyncio.sleep(0)
        arguments = (_copy(request),)
        if operation.takes_time_remaining:
            arguments += (timeout,)  # type: ignore[assignment]
        try:
            return _copy(await _within(timeout, operation.call(*arguments)))
        except TimeoutError:
            raise DeadlineExceededError(f"no answer within {timeout} s") from None
        except Exception as error:
            raise _error(error) from error

    def server_stream(self, method: str, request: Message, timeout: float | None) -> _Answers:
        """Begin a call that is answered by a stream."""
        del timeout  # streams have none
        return _Answers(self._operation(method).call(_copy(request)), answer_type(method))

    async def client_stream(
        self, method: str, requests: AsyncIterable[Message], timeout: float | None
    ) -> Any:
        """Make a call that sends a stream."""
        del timeout
        call = self._operation(method).call
        fault: list[Exception] = []

        async def copies() -> AsyncIterator[Message]:
            try:
                async for request in requests:
                    yield _copy(request)
            except Exception as error:
                fault.append(error)  # the caller's own, to be passed on as it is
                raise

        try:
            return _copy(await call(copies()))
        except Exception as error:
            if fault:
                raise fault[0] from None
            raise _error(error) from error

    async def close(self) -> None:
        """Take no more calls."""
        self._closed = True


async def _within(timeout: float | None, answer: Awaitable[Message]) -> Message:
    """Await an answer. Raises TimeoutError."""
    async with asyncio.timeout(timeout):  # a tenth of the cost of wait_for, which makes a task
        return await answer


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.MergeFromString(message.SerializeToString())
    return copy


class _Answers:
    """The answers of a stream: None once it stands, then serialised messages."""

    def __init__(self, answers: Any, kind: type[Message]) -> None:
        self._answers = answers
        self._kind = kind
        self._first: list[Any] = []
        self._begun = False
        self._lock = asyncio.Lock()

    async def ready(self) -> None:
        async with self._lock:
            if self._begun:
                return
            self._begun = True
            answer = await self._next()
            if answer is not None:
                self._first.append(answer)

    async def _next(self) -> Any:
        try:
            return await self._answers.__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise _error(error) from error

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Any:
        async with self._lock:
            self._begun = True
            answer = self._first.pop() if self._first else await self._next()
            while answer is None:
                answer = await self._next()
        if isinstance(answer, bytes):
            return self._kind.FromString(answer)
        return _copy(answer)

    async def aclose(self) -> None:
        await self._answers.aclose()
