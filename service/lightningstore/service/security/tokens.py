"""The tokens file, reloaded when it changes and written by `lightningstore token`."""

from __future__ import annotations

import hmac
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from lightningstore.service.engine.clock import Clock
from lightningstore.service.rules.access_errors import TokenExpired, TokenInvalid, TokensUnreadable
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security.permissions import Token, digest_of, parse_tokens

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
#: Forbidden bits of the file mode: any access for others, and more than reading for the group.
_TOO_OPEN = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
#: Number of bytes of a hash for the lookup of a token; the whole hash is then compared in constant
#: time.
_INDEX_BYTES = 8
#: Seconds between two checks of the file. A check for every call would take half of the time of a
#: token check.
LOOK_SECONDS = 0.02
#: Seconds between two attempts to load a file that cannot be used, because the cause may not
#: change its signature.
RETRY_SECONDS = 1.0
#: Seconds for which the loaded tokens stay valid while the file cannot be used, to allow for
#: saving or repairing it. After that all calls are rejected, because no token can be revoked.
STALE_SECONDS = 60.0

Signature = tuple[int, ...]


def read_tokens(path: Path) -> tuple[list[Token], Signature]:
    """Return the tokens of a file, and the signature of this state of the file.

    Raises:
        Misconfigured: The file cannot be read, is accessible to others, empty or malformed.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Misconfigured(f"the tokens file {path} is not a regular file")
            if found.st_mode & _TOO_OPEN:
                raise Misconfigured(
                    f"the tokens file {path} is accessible to other users (mode "
                    f"{stat.S_IMODE(found.st_mode):o}): chmod 600 {path}"
                )
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"the tokens file {path} cannot be read: {error.strerror}") from None
    if not data or len(data) > MOST_BYTES:
        # An editor may leave the file empty for a moment while it saves.
        raise Misconfigured(f"the tokens file {path} is {'too large' if data else 'empty'}")
    try:
        return parse_tokens(data.decode()), signature(found)
    except UnicodeDecodeError:
        raise Misconfigured(f"the tokens file {path} is not UTF-8 text") from None
    except ValueError as error:
        raise Misconfigured(f"the tokens file {path} is malformed: {error}") from None


def signature(found: os.stat_result) -> Signature:
    """Return a value that changes whenever the file does."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


class TokenFile:
    """Finds tokens by their secret."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Load the file. Raises Misconfigured."""
        self._path = path
        self._clock = clock
        self._seen: Signature = ()
        self._look_at = clock.monotonic() + LOOK_SECONDS
        #: Time since which the file cannot be used; None while it can.
        self._unusable_since: float | None = None
        self._locked = False
        self._by_index: dict[bytes, Token] = {}
        #: Valid tokens by secret, so that each is hashed once. Python's string hash is randomly
        #: keyed, so the time of a lookup reveals nothing about them.
        self._verified: dict[str, Token] = {}
        self._take(*read_tokens(path))

    def _take(self, tokens: list[Token], seen: Signature) -> None:
        self._by_index = {token.digest[:_INDEX_BYTES]: token for token in tokens}
        self._verified = {}
        self._seen = seen
        logger.info("%d tokens in %s", len(tokens), self._path)

    def _look(self) -> None:
        """Load the file if it has changed.

        A file that cannot be used is logged, and tried again every second.
        """
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            seen = signature(self._path.stat())
        except OSError:
            seen = ()
        if seen == self._seen and self._unusable_since is None:
            return
        try:
            self._take(*read_tokens(self._path))
            self._unusable_since, self._locked = None, False
        except Misconfigured as error:
            self._look_at = now + RETRY_SECONDS
            if self._unusable_since is None:
                self._unusable_since = now
                logger.error("%s; the previous tokens stay valid for %.0f s", error, STALE_SECONDS)
        if self._unusable_since is not None and not self._locked:
            self._locked = now - self._unusable_since >= STALE_SECONDS
            if self._locked:
                logger.error(
                    "the tokens file %s is still unusable: all calls are rejected", self._path
                )

    @property
    def usable(self) -> bool:
        """Whether the file could be used when it was last checked."""
        return self._unusable_since is None

    def find(self, secret: str) -> Token:
        """Return the data of a token.

        Raises:
            TokenInvalid, TokenExpired, TokensUnreadable
        """
        self._look()
        if self._locked:
            raise TokensUnreadable
        token = self._verified.get(secret)
        if token is None:
            token = self._verified[secret] = self._verify(secret)
        if token.expires is not None and token.expires <= utc(self._clock):
            raise TokenExpired
        return token

    def _verify(self, secret: str) -> Token:
        digest = digest_of(secret)
        token = self._by_index.get(digest[:_INDEX_BYTES])
        if token is None or not hmac.compare_digest(token.digest, digest):
            raise TokenInvalid
        return token


def utc(clock: Clock) -> datetime:
    """Return the time of a clock."""
    return datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)


def append(path: Path, token: Token) -> None:
    """Add a token to a file, which is created if necessary.

    Raises:
        Misconfigured: The file cannot be used, or has a token with this name.
    """
    try:
        old = path.read_bytes() if path.exists() else b""
        if old and any(token.name == other.name for other in read_tokens(path)[0]):
            raise Misconfigured(f"{path} already has a token named {token.name}")
        line = ("\n" if old and not old.endswith(b"\n") else "") + token.line()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
            file.write(line.encode())
    except OSError as error:
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from None


def remove(path: Path, name: str) -> None:
    """Remove the token with this name from a file atomically, keeping its mode and owner.

    Raises:
        Misconfigured: The file cannot be used, or has no such token.
    """
    tokens, _ = read_tokens(path)
    if all(token.name != name for token in tokens):
        raise Misconfigured(f"{path} has no token named {name}")
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    lines = target.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split()[:1] != [name]]
    # The last token leaves a comment, because an empty file is treated as one that is being
    # written.
    text = "".join(kept) or "# no tokens\n"
    try:
        old = target.stat()
        mode = stat.S_IMODE(old.st_mode)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            # If root owned the new file, the server could not read it and the token would stay
            # valid.
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from None
