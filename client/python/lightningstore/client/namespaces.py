"""Names of namespaces, and the metadata that names the namespace of a call.

A server holds namespaces. Each is a complete, isolated store.
"""

from __future__ import annotations

import re

#: Metadata key (and HTTP header) that names the namespace of a call.
NAMESPACE_KEY = "x-lightning-namespace"
#: The namespace of calls that name none. It always exists.
DEFAULT_NAMESPACE = "default"

_MAX_LENGTH = 63
_NAME = re.compile(rf"[a-z0-9](?:[a-z0-9._-]{{0,{_MAX_LENGTH - 2}}}[a-z0-9])?")
_RULE = f"must be 1 to {_MAX_LENGTH} of a-z 0-9 - _ . and begin and end with a letter or a digit"


def name_error(name: str) -> str:
    """Describe what is wrong with the name of a namespace.

    Args:
        name: The name.

    Returns:
        The description, to be put after the name of the field; "" if the name is valid.
    """
    if _NAME.fullmatch(name):
        return ""
    shown = name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}…"
    return f"{_RULE}, not {shown!r}"
