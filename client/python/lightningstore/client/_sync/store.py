# Generated from _async/store.py by make_blocking.py. Edit that file, then run `make blocking`.
"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from lightningstore.client._calls.call import Call
from lightningstore.client._calls.groups import GroupWatchState
from lightningstore.client._calls.streams import WaitState, WatchState
from lightningstore.client._sync.claims import ClaimCalls
from lightningstore.client._sync.consumers import ConsumerCalls
from lightningstore.client._sync.datasets import DatasetCalls
from lightningstore.client._sync.groups import GroupCalls
from lightningstore.client._sync.namespaces import NamespaceCalls
from lightningstore.client._sync.resources import ResourceCalls
from lightningstore.client._sync.series import SeriesCalls
from lightningstore.client._sync.streams import GroupStream, WaitStream, WatchStream
from lightningstore.client._sync.workers import WorkerCalls
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.client._transport.protocols import Transport
from lightningstore.client.connection import DEFAULT_TIMEOUT, ConnectionOptions, endpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LightningStore(
    DatasetCalls,
    ClaimCalls,
    GroupCalls,
    ConsumerCalls,
    SeriesCalls,
    ResourceCalls,
    WorkerCalls,
    NamespaceCalls,
):
    """The client of a LightningStore server, for blocking code. Threads may share it.

    The client connects with its first call, and again whenever the connection breaks. Calls that are safe to repeat
    are retried with growing, jittered delays until their deadline. Every write is safe to repeat, because of the ids
    that the client adds to it.

    Durations are seconds, times are datetimes with a time zone. After a fork and after pickling
    the client opens a connection of its own. Use it as a context manager, or call `close`.

    Any call can raise these errors, besides those that its own description names:

    - UnavailableError: No server could be reached before the deadline.
    - DeadlineExceededError: The server did not answer before the deadline.
    - UnauthenticatedError, PermissionDeniedError: The server requires other credentials.
    - ResourceExhaustedError: The server was overloaded until the deadline.
    - DataLossError: A record that the call needs is damaged.
    - RuntimeError: The client is closed.

    Args:
        address: "host:port", or "https://host:port" for TLS. None: LIGHTNINGSTORE_ADDRESS, or 127.0.0.1:4747.
        timeout: Deadline of a call in seconds, its retries included. None: no deadline.
        **connection: Namespace, credentials, TLS files and metadata, see `ConnectionOptions`. Any TLS file means TLS.

    Raises:
        ValueError: The address, the namespace or a file is invalid, or a token would be sent in plain text.
        OSError: A file cannot be read.
        TypeError: An option is unknown.

    Example:
        with LightningStore("127.0.0.1:4747", timeout=10) as store:
            rollout = store.enqueue_rollout({"question": 1})
            print(rollout.rollout_id, rollout.status.value)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        self._timeout = timeout
        server = endpoint(address, **connection)
        self._address, self._namespace = server.address, server.namespace
        self._transport: Transport = GrpcTransport(server)

    @classmethod
    def over(
        cls, transport: Transport, *, timeout: float | None = DEFAULT_TIMEOUT
    ) -> LightningStore:
        """Return a client that sends its calls through a transport of your own.

        Args:
            transport: What carries the calls. Closing the client closes it.
            timeout: Deadline of a call in seconds, its retries included. None: no deadline.

        Returns:
            A client whose `address` is empty.
        """
        store = cls.__new__(cls)
        store._timeout = timeout
        store._address = store._namespace = ""
        store._transport = transport
        return store

    def with_timeout(self, timeout: float | None) -> LightningStore:
        """Return a client with another timeout on the same connection. Closing one closes both.

        Args:
            timeout: Deadline of a call in seconds, its retries included. None: no deadline.

        Returns:
            The other client.
        """
        store = type(self).over(self._transport, timeout=timeout)
        store._address, store._namespace = self._address, self._namespace
        return store

    @property
    def address(self) -> str:
        """Address of the server, "host:port". Empty for a client over a transport of your own."""
        return self._address

    @property
    def namespace(self) -> str:
        """Namespace of the calls. Empty: the client names none, and the server takes "default"."""
        return self._namespace

    def close(self) -> None:
        """Close the connection. Calls in progress fail. Calling it again has no effect."""
        self._transport.close()

    def __enter__(self) -> LightningStore:  # noqa: PYI034
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, method: str, request: Message) -> Any:
        """Make a unary call with a message of the contract, for fields that the other methods do not have.

        The call is retried only if the request makes that safe, by a request id for instance.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed; see the class for the error of each status code.
            ValueError: The contract has no such method.

        Example:
            from lightningstore.v1.statistics_pb2 import GetStatisticsRequest

            response = store.call("GetStatistics", GetStatisticsRequest())
            print(response.queue_depth)
        """
        return self._send(Call(method, request, lambda answer: answer))

    def wait_for_rollouts(
        self,
        rollout_ids: Iterable[str] = (),
        *,
        group_ids: Iterable[str] = (),
        min_count: int | None = None,
        timeout: float | None = None,
    ) -> WaitStream:
        """Iterate over rollouts as they finish, each once. Rollouts that have finished come first.

        The wait covers `rollout_ids` and the rollouts that are in `group_ids` when the call arrives. It ends when all
        of them, or `min_count`, have finished, or after `timeout`. After a broken connection it resumes.

        Args:
            rollout_ids: Ids of rollouts, at most 100,000 by default.
            group_ids: Ids of groups.
            min_count: Number of finished rollouts after which the wait ends. None: all.
            timeout: Seconds after which the wait ends. 0: only rollouts that have finished already. None: unlimited.

        Returns:
            A stream of finished rollouts. After its end, `finished_count` and `open_rollout_ids` say how it ended.

        Raises:
            NotFoundError: While iterating: a rollout does not exist, or a group has no rollouts.
            InvalidArgumentError: While iterating: `min_count` is invalid, or nothing is waited for.
            TypeError: `rollout_ids` or `group_ids` is a single string.

        Example:
            rollout = store.start_rollout({"question": 1})
            waiting = store.wait_for_rollouts([rollout.rollout_id], timeout=60)
            store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            for finished in waiting:
                print(finished.rollout_id, finished.status.value)
            assert waiting.open_rollout_ids == []
        """
        state = WaitState(rollout_ids, group_ids, min_count, timeout)
        return WaitStream(self._transport, state, self._timeout)

    def watch_rollouts(
        self, after_completion_number: int | None = None, *, store_id: str = ""
    ) -> WatchStream:
        """Iterate over the finishes of all rollouts without end, in the order of their completion numbers.

        After a broken connection the watch resumes; no finish is missed. To resume after a restart of your program,
        keep `through_completion_number` and `store_id` of the stream.

        Args:
            after_completion_number: Only finishes with a greater number. 0: from the beginning. None: from now on.
            store_id: Id of the store that the number comes from. Empty: not checked.

        Returns:
            A stream of finished rollouts. A rollout that is reopened and finishes again occurs again.

        Raises:
            OutOfRangeError: While iterating: the number is greater than the last one of the store.
            FailedPreconditionError: While iterating: `store_id` is the id of another store.
            InvalidArgumentError: While iterating: the number is negative.

        Example:
            rollout = store.start_rollout({"question": 1})
            store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            with store.watch_rollouts(0) as finishes:
                for finished in finishes:
                    print(finished.completion_number, finished.rollout_id)
                    break
        """
        state = WatchState(after_completion_number, store_id)
        return WatchStream(self._transport, state, self._timeout)

    def watch_groups(
        self, after_completion_number: int | None = None, *, store_id: str = ""
    ) -> GroupStream:
        """Iterate over all groups as they complete, without end, in the order of their completion numbers.

        After a broken connection the watch resumes; no completion is missed. To resume after a restart of your
        program, keep `through_completion_number` and `store_id` of the stream.

        Args:
            after_completion_number: Only completions with a greater number. 0: from the beginning. None: from now on.
            store_id: Id of the store that the number comes from. Empty: not checked.

        Returns:
            A stream of complete groups. A group that is reopened and completes again occurs again.

        Raises:
            OutOfRangeError: While iterating: the number is greater than the last one of the store.
            FailedPreconditionError: While iterating: `store_id` is the id of another store.
            InvalidArgumentError: While iterating: the number is negative.

        Example:
            rollouts = store.enqueue_rollouts(
                [{"rollout_id": f"sum-{n}", "input": n, "group_id": "sum"} for n in range(4)],
                groups=[{"group_id": "sum", "size": 4}],
            )
            store.cancel_rollouts([rollout.rollout_id for rollout in rollouts])
            with store.watch_groups(0) as completions:
                for group in completions:
                    print(group.completion_number, group.group_id, group.rollout_ids)
                    break
        """
        state = GroupWatchState(after_completion_number, store_id)
        return GroupStream(self._transport, state, self._timeout)
