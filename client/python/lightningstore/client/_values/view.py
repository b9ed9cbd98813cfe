"""What all views of messages have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from google.protobuf.message import Message
from lightningstore.client._values.convert import from_timestamp

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class View(Generic[M]):
    """Shows a message of the contract as Python values. To be read only: nothing changes the store."""

    _shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: M) -> None:
        #: The message of the contract that this shows.
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

    `next_page_token` asks for the next one and is empty at the end. `total_size` counts all that match on
    all pages; None unless it was asked for.
    """

    def __init__(
        self, items: list[T], next_page_token: str = "", total_size: int | None = None
    ) -> None:
        super().__init__(items)
        self.next_page_token = next_page_token
        self.total_size = total_size
