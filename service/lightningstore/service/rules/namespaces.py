"""Names of namespaces, and the namespace that a call names in its metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightningstore.client.namespaces import DEFAULT_NAMESPACE, NAMESPACE_KEY, name_error
from lightningstore.service.rules.errors import FieldInvalid

__all__ = ["DEFAULT_NAMESPACE", "NAMESPACE_KEY", "check_namespace", "is_namespace", "namespace_of"]


def is_namespace(name: str) -> bool:
    """Return whether a text is a valid name of a namespace."""
    return not name_error(name)


def check_namespace(field: str, name: str) -> None:
    """Raise FieldInvalid for an invalid name of a namespace."""
    if error := name_error(name):
        raise FieldInvalid(field, error)


def namespace_of(metadata: Iterable[tuple[str, Any]]) -> str:
    """Return the namespace that a call names; the default one if it names none.

    Access control and routing both use this function, so that they cannot choose different
    namespaces. For the same reason pass all pairs, not a dictionary of them: a call that names two
    namespaces is rejected. Keys are in lower case. An empty value names none, as in other fields
    of the contract.

    Raises:
        FieldInvalid: The name is invalid, or the call names two namespaces.
    """
    name = ""
    for key, value in metadata:
        if key == NAMESPACE_KEY and value:
            if name and value != name:
                raise FieldInvalid(NAMESPACE_KEY, "must occur once in the metadata of a call")
            name = value
    if not name:
        return DEFAULT_NAMESPACE
    check_namespace(NAMESPACE_KEY, name)
    return name
