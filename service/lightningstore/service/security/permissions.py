"""Roles, the table of permissions, and the text format of tokens. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.namespaces import check_namespace


class Role(Enum):
    """Purpose of a token."""

    ADMIN = "admin"
    ALGORITHM = "algorithm"
    RUNNER = "runner"
    READ_ONLY = "read-only"


_ALL = frozenset(Role)
_WORK = frozenset({Role.ADMIN, Role.ALGORITHM, Role.RUNNER})
_STEER = frozenset({Role.ADMIN, Role.ALGORITHM})
_ADMIN = frozenset({Role.ADMIN})
#: Roles that may call a method that is not in the table.
UNLISTED = _ADMIN

_STORE = "/lightningstore.v1.LightningStoreService/"
_NAMESPACES = "/lightningstore.v1.NamespaceService/"
_SERVERS = "/lightningstore.v1.ClusterService/"
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

#: Roles that may call each method. docs/security.md shows this table; a test compares both with
#: the contract.
PERMISSIONS: dict[str, frozenset[Role]] = {
    _STORE + "EnqueueRollouts": _STEER,
    _STORE + "StartRollout": _STEER,
    _STORE + "DequeueRollouts": _WORK,
    _STORE + "StartAttempt": _WORK,
    _STORE + "PauseClaims": _STEER,
    _STORE + "ResumeClaims": _STEER,
    _STORE + "UpdateAttempt": _WORK,
    _STORE + "ListAttempts": _ALL,
    _STORE + "GetAttempt": _ALL,
    _STORE + "GetRollout": _ALL,
    _STORE + "ListRollouts": _ALL,
    _STORE + "UpdateRollout": _STEER,
    _STORE + "CancelRollouts": _STEER,
    _STORE + "DeleteRollouts": _STEER,
    _STORE + "WaitForRollouts": _ALL,
    _STORE + "WatchRollouts": _ALL,
    _STORE + "GetGroup": _ALL,
    _STORE + "ListGroups": _ALL,
    _STORE + "WatchGroups": _ALL,
    _STORE + "CreateConsumer": _STEER,
    _STORE + "GetConsumer": _ALL,
    _STORE + "ListConsumers": _ALL,
    _STORE + "UpdateConsumer": _STEER,
    _STORE + "DeleteConsumer": _STEER,
    _STORE + "PullFinished": _STEER,
    _STORE + "Acknowledge": _STEER,
    _STORE + "ModifyAckDeadline": _STEER,
    _STORE + "ListDeliveries": _ALL,
    _STORE + "IngestSpans": _WORK,
    _STORE + "AddSpans": _WORK,
    _STORE + "AllocateSequenceIds": _WORK,
    _STORE + "QuerySpans": _ALL,
    _STORE + "ListTriplets": _ALL,
    _STORE + "ListSamples": _ALL,
    _STORE + "GetSeries": _ALL,
    _STORE + "ImportRollouts": _STEER,
    _STORE + "AddResources": _STEER,
    _STORE + "UpdateResources": _STEER,
    _STORE + "GetResources": _ALL,
    _STORE + "ListResources": _ALL,
    _STORE + "WatchResources": _ALL,
    _STORE + "Heartbeat": _WORK,
    _STORE + "GetWorker": _ALL,
    _STORE + "ListWorkers": _ALL,
    _STORE + "GetStatistics": _ALL,
    _STORE + "GetServerInfo": _ALL,
    _NAMESPACES + "CreateNamespace": _ADMIN,
    _NAMESPACES + "GetNamespace": _ALL,
    _NAMESPACES + "ListNamespaces": _ALL,
    _NAMESPACES + "UpdateNamespace": _ADMIN,
    _NAMESPACES + "DeleteNamespace": _ADMIN,
    _SERVERS + "ListServers": _ADMIN,
    _SERVERS + "MoveNamespace": _ADMIN,
    _EXPORT: _WORK,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _ALL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ALL,
}

#: Methods that act in the namespace of their metadata.
IN_NAMESPACE = frozenset(m for m in PERMISSIONS if m.startswith(_STORE) or m == _EXPORT)
#: Methods that act in no namespace. Their answers show the namespaces that the token allows.
#: Tokens that are limited to namespaces may not call any method that is in neither set.
IN_NO_NAMESPACE = frozenset(
    method
    for method in PERMISSIONS
    if not method.startswith((_STORE, _SERVERS)) and method != _EXPORT
)

#: Methods without a token, because load balancers and supervisors have none.
OPEN = frozenset(f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch"))

#: Prefix of every token, by which people and secret scanners recognise it.
TOKEN_PREFIX = "lst_"  # noqa: S105
_TOKEN_BYTES = 32
_MAX_NAME_LENGTH = 64
_NAME = re.compile(rf"[A-Za-z0-9._@-]{{1,{_MAX_NAME_LENGTH}}}")
_NAME_RULE = f"a name must be 1 to {_MAX_NAME_LENGTH} letters, digits and . _ @ -"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LIFETIME = re.compile(r"([0-9]{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NEVER = "never"
_LIMIT = "namespaces="


@dataclass(frozen=True)
class Token:
    """The stored data of a token, which does not include the token itself."""

    name: str
    role: Role
    #: SHA-256 of the token. A token is 256 random bits and cannot be guessed, so a slow or salted
    #: hash would add cost to every call without protecting anything.
    digest: bytes
    #: Expiry in UTC; None: never.
    expires: datetime | None
    #: Namespaces that the token is limited to; None: all.
    namespaces: frozenset[str] | None = None

    def line(self) -> str:
        """Return the line of the token in a tokens file, with its line break."""
        words = [self.name, self.role.value]
        words.append(self.expires.strftime(_TIME) if self.expires else _NEVER)
        if self.namespaces is not None:
            words.append(_LIMIT + ",".join(sorted(self.namespaces)))
        return f"{' '.join(words)} sha256:{self.digest.hex()}\n"

    def allows(self, namespace: str) -> bool:
        """Return whether the token may be used in a namespace."""
        return self.namespaces is None or namespace in self.namespaces


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def new_token(
    name: str, role: Role, expires: datetime | None, namespaces: Collection[str] = ()
) -> tuple[str, Token]:
    """Return a new random token and its stored data. Without `namespaces` it allows all of them.

    Raises:
        ValueError: The name, or that of a namespace, is invalid.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(_NAME_RULE)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    limit = _namespaces(namespaces) if namespaces else None
    return secret, Token(name, role, digest_of(secret), expires, limit)


def _namespaces(names: Collection[str]) -> frozenset[str]:
    try:
        for name in names:
            check_namespace("a namespace", name)
    except FieldInvalid as error:
        raise ValueError(error.message) from None
    return frozenset(names)


def lifetime(text: str) -> timedelta:
    """Return the duration of a text like "30d", "12h" or "45m". Raises ValueError."""
    found = _LIFETIME.fullmatch(text)
    if found is None or not int(found[1]):
        raise ValueError(f"a lifetime must be like 30d, 12h or 45m, not {text!r}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def parse_tokens(text: str) -> list[Token]:
    """Return the tokens of a file, one per line; # starts a comment.

    A line has name, role, expiry, namespaces=a,b if the token is limited, and hash. The hash is
    last, so a truncated line is never taken for a complete one.

    Raises:
        ValueError: A line is malformed. The message has its number but not its text, which may
        contain a token.
    """
    tokens: list[Token] = []
    seen: set[str | bytes] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            token = _parse(words)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if token.name in seen or token.digest in seen:
            raise ValueError(f"line {number}: the same name or hash as another line")
        seen |= {token.name, token.digest}
        tokens.append(token)
    return tokens


def _parse(words: list[str]) -> Token:
    if len(words) == 5 and words[3].startswith(_LIMIT):
        limit = _namespaces(words.pop(3).removeprefix(_LIMIT).split(","))
    else:
        limit = None
    if len(words) != 4:
        raise ValueError("a line must be: name, role, expiry or never, [namespaces=a,b] sha256:…")
    name, role, expires, digest = words
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise ValueError("the last word must be sha256: and 64 hex digits")
    if not _NAME.fullmatch(name):
        raise ValueError(_NAME_RULE)
    if role not in {known.value for known in Role}:
        raise ValueError(f"the role must be one of {', '.join(r.value for r in Role)}")
    end = None
    if expires != _NEVER:
        try:
            end = datetime.strptime(expires, _TIME).replace(tzinfo=UTC)
        except ValueError:
            raise ValueError("the expiry must be never, or like 2027-01-31T00:00:00Z") from None
    return Token(name, Role(role), bytes.fromhex(found[1]), end, limit)
