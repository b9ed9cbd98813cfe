"""What both clients share without I/O: a call, whether it may be repeated, and when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client._errors import LightningStoreError, UnavailableError
from lightningstore.v1 import service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]

FIRST_DELAY = 0.05
LONGEST_DELAY = 2.0
#: Deadline in seconds of calls for which nothing else is said, their retries included.
DEFAULT_TIMEOUT = 30.0

#: Not the generator of the process: an agent that seeds that would make all clients wait alike, and the
#: client must not use up the agent's numbers.
_DICE = random.SystemRandom()

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unary call to be made: what is sent, and how the answer is shown."""

    #: Name of the method, "GetRollout" for instance.
    method: str
    request: Any
    shape: Callable[[Any], T]
    #: Seconds that the server may take on purpose, on top of the usual deadline.
    wait: float = 0.0

    def for_page(self, page_token: str) -> Call[T]:
        """Return the same call for the next page."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.page_token = page_token
        if hasattr(request, "skip"):
            request.skip = 0  # what was to be passed over lies before the first page
        return replace(self, request=request)


def method_descriptor(name: str) -> MethodDescriptor:
    """Return the contract's description of a method. Raises ValueError for an unknown one."""
    found: MethodDescriptor | None = SERVICE.methods_by_name.get(name)
    if found is None:
        raise ValueError(f"{name!r} is no method of {SERVICE.full_name}")
    return found


def method_path(name: str) -> str:
    """Return the path of a method on the wire."""
    return f"/{SERVICE.full_name}/{method_descriptor(name).name}"


def answer_type(name: str) -> type[Message]:
    """Return the class of a method's answers."""
    return GetMessageClass(method_descriptor(name).output_type)


def repeats_are_harmless(name: str, request: Any) -> bool:
    """Tell whether a call whose answer was lost may be made again.

    The contract says it of a method, or the request carries ids by which the server knows it again.
    """
    level = method_descriptor(name).GetOptions().idempotency_level
    if level != MethodOptions.IDEMPOTENCY_UNKNOWN:
        return True
    if getattr(request, "request_id", ""):
        return True
    specs = getattr(request, "rollouts", ())
    return bool(specs) and all(spec.rollout_id for spec in specs)


class Retry:
    """Decides, for one call, whether and when it is tried again."""

    def __init__(
        self,
        timeout: float | None,
        *,
        safe: bool = True,
        now: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = _DICE.random,
    ) -> None:
        """Take the seconds until the deadline (None: no limit) and whether a repeat is harmless."""
        self._timeout = timeout
        self._safe = safe
        self._now = now
        self._dice = dice
        self._began = now()
        self._delay = FIRST_DELAY
        self._works = False

    @property
    def _deadline(self) -> float | None:
        return None if self._timeout is None else self._began + self._timeout

    def heard(self) -> None:
        """Begin anew with the next failure: until then all is well, for however long."""
        self._works = True

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least a millisecond; None without one."""
        deadline = self._deadline
        return None if deadline is None else max(deadline - self._now(), 0.001)

    def delay_after(self, error: LightningStoreError) -> float | None:
        """Return the seconds to wait before the next try; None to give up.

        UNAVAILABLE leaves open whether the call had its effect, so only what is harmless to repeat is
        repeated. An error with a retry delay says that it had none.
        """
        if isinstance(error, UnavailableError):
            if not self._safe and error.retry_delay is None:
                return None
        elif error.retry_delay is None:
            return None
        if self._works:
            self._began, self._delay, self._works = self._now(), FIRST_DELAY, False
        # Between a half and the whole: enough to spread many clients, and never near to zero.
        delay = self._delay * (0.5 + 0.5 * self._dice())
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        if error.retry_delay is not None:
            delay = max(delay, error.retry_delay * (1 + 0.2 * self._dice()))
        deadline = self._deadline
        return None if deadline is not None and self._now() + delay >= deadline else delay
