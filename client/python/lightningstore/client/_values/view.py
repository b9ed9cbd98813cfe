"""What all views of messages share."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from google.protobuf.message import Message
from lightningstore.client._values.convert import from_timestamp

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class View(Generic[M]):
    """A read-only view of a message of the contract, as Python values.

    Args:
        message: The message. It is not copied.

    Attributes:
        message: The message. Changing it changes nothing in the store.
    """

    _shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: M) -> None:
        self.message: M = message

    def _time(self, field: str) -> datetime | None:
        message: Any = self.message
        return from_timestamp(getattr(message, field)) if message.HasField(field) else None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self.message == other.message)

    __hash__ = None  # type: ignore[assignment]  # as messages: they can be changed

    def __repr__(self) -> str:
        parts = []
        for name in self._shown:
            value = getattr(self, name)
            parts.append(f"{name}={getattr(value, 'value', value)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"message": self.message}


class Page(list[T]):
    """One page of a list.

    Args:
        items: The items of the page.
        next_page_token: Token of the next page. Empty: this is the last one.
        total_size: Number of items on all pages. None: not counted.

    Attributes:
        next_page_token: Pass it as `page_token` to get the next page. Empty: this is the last one.
        total_size: Number of items on all pages. None unless it was requested.
    """

    def __init__(
        self, items: list[T], next_page_token: str = "", total_size: int | None = None
    ) -> None:
        super().__init__(items)
        self.next_page_token = next_page_token
        self.total_size = total_size
