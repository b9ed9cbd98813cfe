"""Checks of the function of a runner, before the first claim."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

#: How the runner calls the function.
EXPECTED = "(input, resources, tracer, context)"


def check_function(function: Callable[..., Any]) -> None:
    """Reject what a runner cannot call, so that no rollout fails for it.

    Args:
        function: The function of the runner.

    Raises:
        TypeError: It is not callable, does not take four positional arguments, or is a generator function. The
            message shows the signature that is expected.
    """
    name = getattr(function, "__qualname__", None) or type(function).__name__
    if not callable(function):
        raise TypeError(
            f"the runner needs a function with the signature {EXPECTED}, not an object of type {name}"
        )
    called = getattr(function, "__call__", None)  # noqa: B004
    for kind in (inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        if kind(function) or kind(called):
            raise TypeError(
                f"{name} is a generator function: return the reward or None instead of yielding"
            )
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        return
    try:
        signature.bind("input", {}, None, None)
    except TypeError as error:
        raise TypeError(
            f"the runner calls {name} with {EXPECTED}, but its signature is {signature}: {error}"
        ) from None
