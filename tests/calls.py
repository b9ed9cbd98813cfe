"""The operations of a store by their Python names, for tests that go below the client."""

from __future__ import annotations

import re
from typing import Any

from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import table


def snake_case(name: str) -> str:
    """Return a method's name as Python writes it: EnqueueRollouts → enqueue_rollouts."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Calls:
    """`Calls(store).enqueue_rollouts(request)`."""

    def __init__(self, store: Store) -> None:
        self._calls = {
            snake_case(method): operation.call for method, operation in table(store).items()
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return self._calls[name]
        except KeyError:
            raise AttributeError(name) from None
