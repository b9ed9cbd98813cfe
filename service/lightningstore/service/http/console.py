"""The console: web pages that call the contract like any other client. Built by `make console` from console/."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

FOLDER = Path(__file__).with_name("console")
_PAGE = "index.html"
#: The console loads from this server alone, and nothing that is stored becomes part of a page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Names in assets/ contain a hash of the content.
_FOR_A_YEAR = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


class _File(NamedTuple):
    """A file as it is sent."""

    content: bytes
    compressed: bytes
    content_type: str
    tag: str


class Console:
    """Serves the files of the console, without a token: they contain nothing of the store."""

    def __init__(self) -> None:
        """Prepare to serve; files are read when they are requested first."""
        self._files: dict[str, _File] = {}

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The routes: the page, and each file that it loads."""
        names = [path.relative_to(FOLDER).as_posix() for path in sorted(FOLDER.rglob("*.*"))]
        return (
            web.get("/", self._show),
            *(web.get(f"/{name}", self._show) for name in names if name != _PAGE),
        )

    def close(self) -> None:
        """Do nothing: the files are not open."""

    async def _show(self, request: web.Request) -> web.Response:
        name = request.path.lstrip("/") or _PAGE
        file = self._files.get(name) or self._files.setdefault(name, _read(name))
        headers = {
            "Content-Security-Policy": POLICY,
            "Cache-Control": _FOR_A_YEAR if name.startswith("assets/") else _ASK_AGAIN,
            "ETag": file.tag,
            "Vary": "Accept-Encoding",
        }
        if request.headers.get("If-None-Match") == file.tag:
            return web.Response(status=304, headers=headers)
        body = file.content
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            body = file.compressed
        headers["Content-Type"] = file.content_type
        return web.Response(body=body, headers=headers)


def _read(name: str) -> _File:
    content = (FOLDER / name).read_bytes()
    content_type = guess_type(name)[0] or "text/plain"
    if content_type.startswith("text/"):
        content_type += "; charset=utf-8"
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    return _File(content, gzip.compress(content, mtime=0), content_type, tag)
