"""The file of tokens: read again whenever it changes, written by `lightningstore token`."""

from __future__ import annotations

import hmac
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from lightningstore.service.engine.clock import Clock
from lightningstore.service.rules.errors import (
    Misconfigured,
    TokenExpired,
    TokenInvalid,
    TokensUnreadable,
)
from lightningstore.service.security.permissions import Token, digest_of, parse_tokens

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
#: Bits of the mode that let in whom they must not: others at all, the group beyond reading.
_TOO_OPEN = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
#: Bytes of a hash by which a token is looked up; all of it is then compared in constant time.
_INDEX_BYTES = 8
#: Seconds between two looks at the file: a look at every call would take half of what a token costs it.
LOOK_SECONDS = 0.02
#: Seconds between two attempts to read a file that cannot be used: why it cannot need not show in its signature.
RETRY_SECONDS = 1.0
#: Seconds for which the tokens read before stay in force while the file cannot be used: enough to save it, or to
#: mend it. After that nobody is let in, for nobody can be revoked.
STALE_SECONDS = 60.0

Signature = tuple[int, ...]


def read_tokens(path: Path) -> tuple[list[Token], Signature]:
    """Return the tokens of a file, and what tells this state of the file from others.

    Raises Misconfigured if it cannot be read, is open to others, empty or malformed.
    """
    try:
        # Without O_NONBLOCK a named pipe would keep us waiting.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Misconfigured(f"the tokens file {path} is no plain file")
            if found.st_mode & _TOO_OPEN:
                raise Misconfigured(
                    f"the tokens file {path} is open to others (mode "
                    f"{stat.S_IMODE(found.st_mode):o}): chmod 600 {path}"
                )
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"the tokens file {path} cannot be read: {error.strerror}") from None
    if not data or len(data) > MOST_BYTES:
        # Empty is what an editor makes of a file for a moment while it saves.
        raise Misconfigured(f"the tokens file {path} is {'too large' if data else 'empty'}")
    try:
        return parse_tokens(data.decode()), signature(found)
    except UnicodeDecodeError:
        raise Misconfigured(f"the tokens file {path} is no text in UTF-8") from None
    except ValueError as error:
        raise Misconfigured(f"the tokens file {path} is malformed: {error}") from None


def signature(found: os.stat_result) -> Signature:
    """Return what tells this state of a file from others."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


class TokenFile:
    """Knows who a token belongs to."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Read the file. Raises Misconfigured."""
        self._path = path
        self._clock = clock
        self._seen: Signature = ()
        self._look_at = clock.monotonic() + LOOK_SECONDS
        #: When the file was found to be unusable; None while it is good.
        self._unusable_since: float | None = None
        self._locked = False
        self._by_index: dict[bytes, Token] = {}
        #: Tokens seen and found good, so that each is hashed once. Python's hash of a string is keyed with
        #: chance, so the time that a look-up takes says nothing about them.
        self._verified: dict[str, Token] = {}
        self._take(*read_tokens(path))

    def _take(self, tokens: list[Token], seen: Signature) -> None:
        self._by_index = {token.digest[:_INDEX_BYTES]: token for token in tokens}
        self._verified = {}
        self._seen = seen
        logger.info("%d tokens in %s", len(tokens), self._path)

    def _look(self) -> None:
        """Load the file if it has changed. One that cannot be used is logged, and read again every second."""
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
                logger.error(
                    "%s; the tokens read before stay in force for %.0f s", error, STALE_SECONDS
                )
        if self._unusable_since is not None and not self._locked:
            self._locked = now - self._unusable_since >= STALE_SECONDS
            if self._locked:
                logger.error(
                    "the tokens file %s is still unusable: all calls are refused", self._path
                )

    @property
    def usable(self) -> bool:
        """Whether the file could be read when it was last looked at."""
        return self._unusable_since is None

    def find(self, secret: str) -> Token:
        """Return what a token is. Raises TokenInvalid, TokenExpired, TokensUnreadable."""
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
    """Add a token to a file, which is created if need be. Raises Misconfigured, also for a name taken."""
    try:
        old = path.read_bytes() if path.exists() else b""
        if old and any(token.name == other.name for other in read_tokens(path)[0]):
            raise Misconfigured(f"{path} has a token named {token.name} already")
        line = ("\n" if old and not old.endswith(b"\n") else "") + token.line()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
            file.write(line.encode())
    except OSError as error:
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from None


def remove(path: Path, name: str) -> None:
    """Take the token of a name out of a file, in one step; mode and owner stay. Raises Misconfigured."""
    tokens, _ = read_tokens(path)
    if all(token.name != name for token in tokens):
        raise Misconfigured(f"{path} has no token named {name}")
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    lines = target.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split()[:1] != [name]]
    # The last one leaves a comment: an empty file would be taken for one that is being written.
    text = "".join(kept) or "# no tokens\n"
    try:
        old = target.stat()
        mode = stat.S_IMODE(old.st_mode)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            # A file of root's that the server cannot read would leave the token in force.
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from None
