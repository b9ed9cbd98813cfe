"""A store in this process, without a server: the same calls on the same engine."""

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
from lightningstore.client.namespaces import DEFAULT_NAMESPACE

#: Number of consecutive calls after which other tasks of the event loop run.
CALLS_A_TURN = 64
#: The error without the server's packages.
MISSING = (
    "open_store requires the server, which is not installed: pip install 'lightningstore[server]'"
)


@asynccontextmanager
async def open_store(
    url: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    timeout: float | None = DEFAULT_TIMEOUT,
    clock: Any = None,
    **options: Any,
) -> AsyncIterator[AsyncLightningStore]:
    """Open a store in this process, as an asynchronous context manager.

    Args:
        url: "memory://", "sqlite:///relative/path.db" or "sqlite:////absolute/path.db". A file is created if it does
            not exist. A file that another process has open is rejected.
        namespace: Namespace of all calls. Another one than "default" must exist: `create_namespace` creates it.
        timeout: Deadline of a call in seconds. None: no deadline.
        clock: A clock of your own, for tests. None: the clocks of the system.
        **options: Options of `lightningstore serve` with underscores, such as `durability="relaxed"`.

    Yields:
        A client of the store. Leaving the context closes both.

    Raises:
        ImportError: The server is not installed: `pip install 'lightningstore[server]'`.
        ValueError: The URL or an option is unknown.
        NotFoundError: The namespace does not exist.
        lightningstore.service.rules.errors.StorageUnusable: The file cannot be used.

    Example:
        async with open_store("memory://") as store:
            await store.enqueue_rollout({"question": 1})
            [rollout] = await store.dequeue_rollouts()
            print(rollout.attempt.attempt_id)
    """
    backend, path = _parse(url)
    try:
        from lightningstore.service.namespaces import service  # noqa: PLC0415
        from lightningstore.service.namespaces.routed import table_in  # noqa: PLC0415
        from lightningstore.service.server.config import Config  # noqa: PLC0415
        from lightningstore.service.server.server import open_directory  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(MISSING) from error
    unknown = sorted(set(options) - set(Config.model_fields))
    if unknown:
        raise ValueError(f"unknown option: {', '.join(unknown)}")
    options["backend"] = backend
    if path:
        options["db"] = path
    directory = await open_directory(Config(**options), clock)
    operations = {**table_in(directory, namespace), **service.table(directory)}
    store = AsyncLightningStore.over(StoreTransport(operations), timeout=timeout)
    store._namespace = namespace
    try:
        try:
            directory.find(namespace)
        except Exception as error:
            raise _error(error) from None
        yield store
    finally:
        await store.close()
        await directory.close()


def store_over(service: Any, *, timeout: float | None = DEFAULT_TIMEOUT) -> AsyncLightningStore:
    """Return a client of an open store of the service.

    Args:
        service: A `lightningstore.service.operations.store.Store`. Closing the client does not close it.
        timeout: Deadline of a call in seconds. None: no deadline.

    Returns:
        The client.
    """
    from lightningstore.service.operations.table import table  # noqa: PLC0415

    return AsyncLightningStore.over(StoreTransport(table(service)), timeout=timeout)


def _parse(url: str) -> tuple[str, str]:
    if url in ("memory://", "memory:"):
        return "memory", ""
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return "sqlite", url[len("sqlite:///") :]
    raise ValueError(f'the URL must be "memory://" or "sqlite:///path/to/file.db", not {url!r}')


def _error(error: Exception) -> LightningStoreError:
    """Convert an error to what it would be over gRPC."""
    from lightningstore.service.rpc.status import to_status  # noqa: PLC0415
    from lightningstore.service.rules.errors import StoreError  # noqa: PLC0415

    if isinstance(error, LightningStoreError):
        return error
    if isinstance(error, StoreError):
        return from_status(to_status(error))
    return InternalError(f"{type(error).__name__}: {error}", reason="ERROR_REASON_INTERNAL")


class StoreTransport:
    """Carries calls to a store on the same event loop.

    Messages are copied in both directions, because a caller must not be able to change the records of the store.

    Args:
        table: The operations of the store, by the names of the contract's methods.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        self._closed = False
        self._calls = 0

    def _operation(self, method: str) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        return self._table[method]

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one request and one response.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.
            timeout: Deadline in seconds. None: no deadline.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            RuntimeError: The transport is closed.
        """
        operation = self._operation(method)
        self._calls += 1
        if self._calls % CALLS_A_TURN == 0:
            # A call that need not wait does not suspend. Without this, a loop of such calls would keep the
            # watchdog and all other tasks from running.
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
        """Start a call with a stream of responses.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.
            timeout: Deadline in seconds. None: no deadline.

        Returns:
            The responses. Errors of the call are raised while iterating.

        Raises:
            RuntimeError: The transport is closed.
        """
        del timeout  # streams have none
        return _Answers(self._operation(method).call(_copy(request)), answer_type(method))

    async def client_stream(
        self,
        method: str,
        requests: AsyncIterable[Message],
        timeout: float | None,
        *,
        stall: float | None = None,
    ) -> Any:
        """Make a call with a stream of requests. Errors of the iterable are raised unchanged.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            requests: The request messages.
            timeout: Deadline in seconds. None: no deadline.
            stall: Seconds that the server may take to accept a request, or to answer after the last one. None: no
                limit.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            RuntimeError: The transport is closed.
        """
        del timeout, stall
        call = self._operation(method).call
        fault: list[Exception] = []

        async def copies() -> AsyncIterator[Message]:
            try:
                async for request in requests:
                    yield _copy(request)
            except Exception as error:
                fault.append(error)  # an error of the caller's iterable, which is raised unchanged
                raise

        try:
            return _copy(await call(copies()))
        except Exception as error:
            if fault:
                raise fault[0] from None
            raise _error(error) from error

    async def close(self) -> None:
        """Cancel all calls, and accept no more."""
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
    """The responses of a stream: None once it is registered, then serialised messages."""

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
