"""Keeps forks and calls apart: gRPC may crash the child of a fork that happens during a call of another thread.

gRPC prepares itself for a fork only while no thread is inside of it. Otherwise the child has the locks and queues of
threads that it does not have, and its first call may end the process. Therefore a fork waits for the calls in progress
that end soon, and a new call waits until the fork is over. A long poll that may be repeated is cancelled. Other calls
that last long are not waited for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightningstore.client._transport.protocols import PendingCall

#: Maximum seconds that a fork waits for calls, and a call for forks. A call that has lasted as long is not waited for.
WAIT = 1.0


class Ticket:
    """A call in progress.

    Args:
        thread: The thread that makes the call, and that may fork during it. None: the call needs none.
    """

    def __init__(self, thread: int | None) -> None:
        self.began = time.monotonic()
        self.thread = thread
        #: Cancels the call. None: it is not cancelled for a fork.
        self.cancel: Callable[[], None] | None = None
        #: Whether a fork has cancelled the call.
        self.is_cancelled = False


class Gate:
    """Knows the calls in progress and the forks of this process."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._tickets: set[Ticket] = set()
        #: The threads that fork.
        self._forking: list[int] = []

    def _enter(self, thread: int | None) -> Ticket:
        with self._changed:
            if self._forking and threading.get_ident() not in self._forking:
                self._changed.wait_for(lambda: not self._forking, WAIT)
            ticket = Ticket(thread)
            self._tickets.add(ticket)
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._tickets.discard(ticket)  # the child of a fork has none of its parent
            if self._forking:
                self._changed.notify_all()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call of this thread inside of this context."""
        ticket = self._enter(threading.get_ident())
        try:
            yield
        finally:
            self._leave(ticket)

    def begin(
        self, start: Callable[[], PendingCall], *, may_cancel: bool = False
    ) -> tuple[PendingCall, Ticket]:
        """Start a call that no thread waits for.

        Args:
            start: Starts the call.
            may_cancel: Whether a fork cancels it. The ticket then says so.

        Returns:
            The call, and its ticket.
        """
        ticket = self._enter(None)
        try:
            pending = start()
        except BaseException:
            self._leave(ticket)
            raise
        pending.when_done(lambda: self._leave(ticket))
        if may_cancel:
            with self._changed:
                ticket.cancel = pending.cancel
                forks = bool(self._forking)
            if forks:
                _cancel(ticket)
        return pending, ticket

    def _is_quiet(self) -> bool:
        since, me = time.monotonic() - WAIT, threading.get_ident()
        return all(
            ticket.cancel is None and (ticket.began < since or ticket.thread == me)
            for ticket in self._tickets
        )

    def before_fork(self) -> None:
        """Let no other thread begin a call, cancel the long polls, and wait for the calls in progress."""
        with self._changed:
            self._forking.append(threading.get_ident())
            long = [ticket for ticket in self._tickets if ticket.cancel is not None]
        for ticket in long:
            _cancel(ticket)
        with self._changed:
            self._changed.wait_for(self._is_quiet, WAIT)

    def after_fork(self) -> None:
        """Let calls begin again, in the parent."""
        with self._changed:
            self._forking.remove(threading.get_ident())
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Forget the calls of the parent: their threads do not exist here."""
        self._reset()


def _cancel(ticket: Ticket) -> None:
    if ticket.cancel is not None:
        ticket.is_cancelled = True
        ticket.cancel()


#: The gate of this process.
gate = Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.before_fork,
        after_in_parent=gate.after_fork,
        after_in_child=gate.after_fork_in_child,
    )
