"""The frame of all pages, and what holds for each of them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from lightningstore.client import LightningStore
from playwright.sync_api import Page, expect

from tests.console.conftest import COMMAND, Server

PAGES = {
    "": "Overview",
    "training": "Training",
    "rollouts": "Rollouts",
    "workers": "Workers",
    "consumers": "Consumers",
    "resources": "Resources",
}
Open = Any


def is_live(page: Page) -> None:
    """Wait until the page has answers of the server."""
    expect(page.locator(".connection")).to_have_text("live")
    expect(page.locator(".loading")).to_have_count(0)


def test_each_page_opens_and_survives_a_reload(server: Server, open_page: Open) -> None:
    page = open_page(server.link)
    for name, title in PAGES.items():
        page.goto(f"{server.link}/#/{name}")
        for _ in range(2):
            is_live(page)
            expect(page.get_by_role("heading", level=1)).to_have_text(title)
            page.reload()


def test_navigation_leads_to_all_pages(server: Server, open_page: Open) -> None:
    page = open_page(server.link)
    for title in PAGES.values():
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=title).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert title in page.title()


def test_namespace_is_in_the_link(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.enqueue_rollout(1, rollout_id="only-here")
    page = open_page(f"{server.link}/#/rollouts")
    is_live(page)
    page.get_by_label("Namespace").select_option(namespace)
    expect(page.get_by_role("link", name="only-here")).to_be_visible()
    assert f"namespace={namespace}" in page.url
    page.reload()
    expect(page.get_by_role("link", name="only-here")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(2)


def test_page_asks_for_a_token_and_keeps_it_in_the_tab(tmp_path: Path, open_page: Any) -> None:
    open_page.allow("401")
    open_page.allow("403")  # the role may not list namespaces
    open_page.allow("ERR_")  # the server stops before the browser does
    tokens = tmp_path / "tokens"
    made = subprocess.run(
        [COMMAND, "token", "new", "--file", tokens, "--role", "read-only", "--name", "viewer"],
        capture_output=True,
        text=True,
        check=True,
    )
    secret = made.stdout.split()[0]
    server = Server(tmp_path, "--backend", "memory", "--auth-tokens", str(tokens), "--insecure")
    try:
        page = open_page(f"{server.link}/#/rollouts?status=failed")
        page.get_by_label("Token").fill("lst_wrong")
        page.get_by_role("button", name="Open the console").click()
        expect(page.get_by_role("alert")).to_contain_text("TOKEN_INVALID")
        page.get_by_label("Token").fill(secret)
        page.get_by_role("button", name="Open the console").click()
        is_live(page)
        expect(page.get_by_label("failed")).to_be_checked()
        page.reload()
        is_live(page)
        assert page.context.cookies() == []
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.get_by_role("button", name="Forget token").click()
        expect(page.get_by_label("Token")).to_be_visible()
    finally:
        server.stop()
