"""Failures made of exceptions.

The exceptions come from agents, so nothing about them is certain: `str` may raise, or return a gigabyte or half a
surrogate pair, and the class may have a name of any length. Nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightningstore.client._runner.context import NonRetryable
from lightningstore.client._values.text import valid
from lightningstore.client.values import Failure

#: Maximum characters of a failure's type and message.
TYPE_LENGTH = 256
MESSAGE_LENGTH = 16_384
#: Maximum exceptions of a group, at all levels, that its message names.
GROUP_MEMBERS = 20
_CUT = "…"


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an exception is reported as.

    The type is the name of the class. The message is the result of `str`, else of `repr`, else a sentence that says why
    there is no text. The message of a group names its members.
    """
    if not isinstance(error, NonRetryable):
        return Failure(_type_of(error), _cut(_message_of(error), MESSAGE_LENGTH))
    kind = error if error.__cause__ is None else error.__cause__
    return Failure(_type_of(kind), _cut(_message_of(error), MESSAGE_LENGTH), retryable=False)


def minimal(failure: Failure, reason: object) -> Failure:
    """Return a failure without the text of the agent, for a server that rejected that text."""
    kind = failure.type if failure.type.isascii() and failure.type.isprintable() else ""
    text = _cut(_text_of(str, reason) or type(reason).__name__, 1000)
    message = f"The server rejected the text of the failure: {text}"
    return Failure(_cut(kind, 100), message, failure.retryable)


def _type_of(error: BaseException) -> str:
    name = _text_of(lambda kind: kind.__qualname__, type(error))
    return _cut(name or "Exception", TYPE_LENGTH)


def _message_of(error: BaseException) -> str:
    text = _text_of(str, error) or _text_of(repr, error)
    if not text:
        text = f"The exception has no text: str() and repr() of {_type_of(error)} fail or are empty"
    members = _members_of(error)
    return f"{text}: {'; '.join(members)}" if members else text


def _members_of(group: BaseException) -> list[str]:
    """Return type and text of the exceptions in a group, those of groups in it included."""
    members_text: list[str] = []
    level = [group]
    while level and len(members_text) < GROUP_MEMBERS:
        error = level.pop(0)
        members = getattr(error, "exceptions", None) if _is_group(error) else None
        if isinstance(members, tuple):
            level.extend(members[:GROUP_MEMBERS])
        elif error is not group:
            text = _cut(_text_of(str, error), MESSAGE_LENGTH // GROUP_MEMBERS)
            members_text.append(f"{_type_of(error)}: {text}" if text else _type_of(error))
    return members_text


def _is_group(error: BaseException) -> bool:
    # By name, so that groups of the backport package count too.
    return any(base.__name__ == "BaseExceptionGroup" for base in type(error).__mro__)


def _text_of(function: Callable[[Any], object], value: object) -> str:
    """Return the result of a function of the agent as text; "" if it raises or returns no string."""
    try:
        text = function(value)
        # A copy, since a subclass of str may override anything.
        return str.__str__(text) if isinstance(text, str) else ""
    except BaseException:  # not even SystemExit may end the runner
        return ""


def _cut(text: str, length: int) -> str:
    """Return a text of at most this many characters, valid UTF-8."""
    if len(text) > length:
        text = text[: length - len(_CUT)] + _CUT
    return valid(text)
