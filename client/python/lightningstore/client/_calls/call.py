"""A unary call to be made, without I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

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
