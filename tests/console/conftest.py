"""One browser, and servers that it opens the console of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightningstore.client import LightningStore

from tests.console import lively

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Run these tests alone, and where `make console-test` has installed playwright.

    It has an event loop of its own, beside which no other asyncio test can start one.
    """
    alone = all("tests/console" in Path(argument).as_posix() for argument in config.args)
    return None if alone and find_spec("playwright") is not None else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give browsers on busy machines time."""
    for item in items:
        item.add_marker(pytest.mark.timeout(300))


COMMAND = str(Path(sys.executable).parent / "lightningstore")
#: The machine may be busy: nothing is waited for that does not come.
WAIT_MS = 30_000
#: Nothing but the pages that are tested, and no requests of the browser's own.
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-sandbox"),
)


class Server:
    """A server process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.start()

    def start(self, *options: str) -> None:
        """Start it, with further options."""
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", *self.options, *options],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(3)]
        self.address = lines[1].partition("LIGHTNINGSTORE_ADDRESS=")[2].strip()
        self.link = lines[2].removeprefix("console: ").strip()
        assert self.link.startswith("http"), lines

    def stop(self) -> None:
        """Shut it down."""
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium."""
    from playwright.sync_api import expect, sync_playwright

    program = shutil.which("chromium")
    if program is None:
        reason = "no chromium: install Debian's"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Open links in fresh tabs; whatever a page logs as an error, or asks of another host, fails the test.

    A test that provokes errors says which in `allow`: a browser logs each answer that is an error.
    """
    if "namespace" in request.fixturenames:
        request.getfixturevalue("namespace")  # is deleted once no tab asks for it any more
    contexts: list[BrowserContext] = []
    problems: list[str] = []
    allowed: list[str] = []

    def opened(link: str, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        origin = "/".join(link.split("/")[:3])

        def check(url: str) -> None:
            if not url.startswith((origin + "/", "data:")):
                problems.append(f"request to {url}")

        page.on("request", lambda request: check(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and problems.append(line.text))
        page.goto(link)
        return page

    opened.allow = allowed.append  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert [text for text in problems if not any(part in text for part in allowed)] == []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose namespace `default` is lively, and whose other namespaces belong to tests."""
    server = Server(tmp_path_factory.mktemp("console"), "--backend", "memory")
    with LightningStore(server.address) as store:
        lively.fill(store)
    yield server
    server.stop()


@pytest.fixture
def namespace(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace of the server."""
    name = request.node.name.replace("_", "-").split("[")[0][:60].strip("-")
    with LightningStore(server.address) as store:
        store.create_namespace(name)
        yield name
        store.delete_namespace(name, force=True)


@pytest.fixture
def store(server: Server, namespace: str) -> Iterator[LightningStore]:
    """A client in the fresh namespace."""
    with LightningStore(server.address, namespace=namespace) as store:
        yield store
