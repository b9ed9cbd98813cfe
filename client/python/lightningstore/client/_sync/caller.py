# Generated from _async/caller.py by make_blocking.py. Edit that file, then run `make blocking`.
"""What all calls of the blocking client share: the transport, the timeout, retries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._calls.call import Call
from lightningstore.client._calls.uploads import is_repeatable, requests
from lightningstore.client._transport.methods import repeats_are_harmless
from lightningstore.client._transport.protocols import Transport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.errors import LightningStoreError

Item = TypeVar("Item")
T = TypeVar("T")


class Caller:
    """Sends calls through a transport and retries them until their deadline."""

    _transport: Transport
    #: Seconds of a call, its retries included. None: no deadline.
    _timeout: float | None

    def _send(self, call: Call[T]) -> T:
        timeout = None if self._timeout is None else self._timeout + call.wait
        retry = Retry(timeout, safe=repeats_are_harmless(call.method, call.request))
        while True:
            try:
                answer = self._transport.unary(call.method, call.request, retry.remaining())
            except LightningStoreError as error:
                delay = retry.delay_after(error)
                if delay is None:
                    raise
            else:
                return call.shape(answer)
            time.sleep(delay)

    def _upload(
        self,
        method: str,
        items: Iterable[Item],
        messages: Callable[[Item], Iterable[Message]],
        shape: Callable[[Any], T],
    ) -> T:
        """Send items over a client stream, again after a break if they can be iterated again.

        The call has no deadline while the server accepts items. It fails if the server accepts none for as long as the
        timeout.
        """
        repeatable = is_repeatable(items)
        retry = Retry(self._timeout)
        retry.heard()
        while True:
            try:
                answer = self._transport.client_stream(
                    method, requests(items, messages), None, stall=self._timeout
                )
            except LightningStoreError as error:
                delay = retry.delay_after(error) if repeatable else None
                if delay is None:
                    raise
            else:
                return shape(answer)
            time.sleep(delay)
