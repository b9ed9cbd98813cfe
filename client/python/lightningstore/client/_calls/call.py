"""Unary calls as values, without I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unary call: its request, and the conversion of its response."""

    #: Name of the method in the contract, such as "GetRollout".
    method: str
    request: Any
    shape: Callable[[Any], T]
    #: Seconds that the server may wait, in addition to the usual deadline.
    wait: float = 0.0

    def for_page(self, page_token: str) -> Call[T]:
        """Return the same call for the next page."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.page_token = page_token
        if hasattr(request, "skip"):
            request.skip = 0  # the skipped items are before the first page
        return replace(self, request=request)
