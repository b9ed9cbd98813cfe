"""The files of the console, as a browser gets them."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from lightningstore.service.http.console import FOLDER, POLICY

from tests.contract.conftest import World
from tests.integration.http_calls import port_of
from tests.integration.test_otlp_http import send

MAX_BYTES = 150_000


@pytest_asyncio.fixture
async def port(world: World) -> AsyncIterator[int]:
    yield port_of(world)


def names() -> list[str]:
    return [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*")]


def test_console_is_small() -> None:
    sizes = {name: len(gzip.compress((FOLDER / name).read_bytes())) for name in names()}
    assert sum(sizes.values()) <= MAX_BYTES, sizes


def test_page_loads_nothing_but_files_of_the_console() -> None:
    page = (FOLDER / "index.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {name.removeprefix("./") for name in loaded} < set(names())
    # A script or a style within the page would be refused by the policy.
    assert re.findall(r"<script(?![^>]*src=)|<style|style=|\son\w+=", page) == []


@pytest.mark.parametrize("world", ["memory-grpc"], indirect=True)
class TestServed:
    pytestmark = pytest.mark.asyncio

    async def test_page_is_asked_for_again_and_files_are_kept(self, port: int) -> None:
        for name in names():
            path = f"/{'' if name == 'index.html' else name}"
            answer = await send(port, "GET", path)
            assert answer.status == 200
            assert answer.body == (FOLDER / name).read_bytes()
            assert answer.headers["Content-Security-Policy"] == POLICY
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "Set-Cookie" not in answer.headers
            kept = name.startswith("assets/")
            assert ("immutable" in answer.headers["Cache-Control"]) is kept
            assert (answer.headers["Cache-Control"] == "no-cache") is not kept
            again = {"If-None-Match": answer.headers["ETag"]}
            assert (await send(port, "GET", path, None, again)).status == 304

    async def test_files_have_their_types(self, port: int) -> None:
        types = {
            name.rpartition(".")[2]: (await send(port, "GET", f"/{name}")).headers["Content-Type"]
            for name in names()
            if name != "index.html"
        }
        assert types["js"] == "text/javascript; charset=utf-8"
        assert types["css"] == "text/css; charset=utf-8"
        assert types["svg"] == "image/svg+xml"

    async def test_compressed_files_are_the_same(self, port: int) -> None:
        headers = {"Accept-Encoding": "gzip, br"}
        answer = await send(port, "GET", "/", None, headers)
        assert answer.body == (FOLDER / "index.html").read_bytes()
        assert answer.headers["Content-Encoding"] == "gzip"

    async def test_other_paths_are_not_served(self, port: int) -> None:
        for path in (
            "/index.html",
            "/assets/",
            "/assets/x.js",
            "/assets/../index.html",
            "/rollouts",
        ):
            assert (await send(port, "GET", path)).status == 404
