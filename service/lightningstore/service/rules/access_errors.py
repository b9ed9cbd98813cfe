"""Errors of access control: tokens, roles, and the namespaces that a token is limited to."""

from __future__ import annotations

from collections.abc import Iterable

from lightningstore.service.rules.errors import StoreError
from lightningstore.v1 import error_reason_pb2 as reasons


class TokenMissing(StoreError):
    """The server requires a token and the call has none."""

    reason = reasons.ERROR_REASON_TOKEN_MISSING

    def __init__(self) -> None:
        super().__init__(
            "this server requires a token: metadata authorization, Bearer and the token"
        )


class TokenInvalid(StoreError):
    """The token of the call is unknown to this server or is not a bearer token."""

    reason = reasons.ERROR_REASON_TOKEN_INVALID

    def __init__(self) -> None:
        super().__init__("the token is unknown to this server")


class TokensUnreadable(StoreError):
    """The server cannot read its tokens file, so it cannot tell whether a token was revoked."""

    reason = reasons.ERROR_REASON_TOKEN_INVALID

    def __init__(self) -> None:
        super().__init__(
            "the server cannot read its tokens file and rejects all tokens; see its log"
        )


class TokenExpired(StoreError):
    """The token of the call has expired."""

    reason = reasons.ERROR_REASON_TOKEN_EXPIRED

    def __init__(self) -> None:
        super().__init__("the token has expired")


class PermissionDenied(StoreError):
    """The role of the token does not allow the call."""

    reason = reasons.ERROR_REASON_PERMISSION_DENIED

    def __init__(self, role: str, method: str) -> None:
        super().__init__(f"the role {role} may not call {method}", role=role, method=method)


class NamespaceDenied(StoreError):
    """The token is limited to other namespaces than that of the call."""

    reason = reasons.ERROR_REASON_PERMISSION_DENIED

    def __init__(self, allowed: Iterable[str]) -> None:
        """Create an error that says nothing about which other namespaces exist."""
        names = ", ".join(sorted(allowed))
        super().__init__(
            f"the token is limited to namespaces: {names}; name one of them in the metadata "
            "x-lightning-namespace",
            namespaces=names,
        )
