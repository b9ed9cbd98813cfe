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
    expect(page.locator(".loading, [aria-busy=true]")).to_have_count(0)


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


def new_token(tokens: Path, role: str, *namespaces: str) -> str:
    """Add a token to a file, limited to namespaces if there are any, and return it."""
    limits = [f"--namespace={namespace}" for namespace in namespaces]
    name = "-".join((role, *namespaces))
    made = subprocess.run(
        [COMMAND, "token", "new", "--file", tokens, "--role", role, "--name", name, *limits],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.split()[0]


def enter(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Open the console").click()


def test_page_asks_for_a_token_and_shows_what_its_role_may_do(
    tmp_path: Path, open_page: Any
) -> None:
    for expected in ("401", "403"):  # also while it finds out what the role may do
        open_page.allow(expected)
    open_page.allow("ERR_")  # the server stops before the browser does
    tokens = tmp_path / "tokens"
    viewer, admin = new_token(tokens, "read-only"), new_token(tokens, "admin")
    server = Server(tmp_path, "--backend", "memory", "--auth-tokens", str(tokens))
    try:
        client = LightningStore(server.address, token=admin, allow_insecure_token=True)
        with client as store:
            store.pause_claims("weights")
        page = open_page(f"{server.link}/#/?status=failed")
        enter(page, "lst_wrong")
        expect(page.get_by_role("alert")).to_contain_text("TOKEN_INVALID")
        # What the role may do is known once a call that changes nothing has been answered.
        with page.expect_response("**/CancelRollouts"):
            enter(page, viewer)
        is_live(page)
        expect(page.get_by_text("Claims have been paused")).to_be_visible()
        expect(page.get_by_role("button", name="Resume claims")).to_have_count(0)
        page.reload()
        is_live(page)
        assert page.url.endswith("status=failed")
        assert page.context.cookies() == []
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.get_by_role("button", name="Forget token").click()
        enter(page, admin)
        expect(page.get_by_role("button", name="Resume claims")).to_be_visible()
        expect(page.get_by_role("combobox", name="Namespace")).to_be_visible()
    finally:
        server.stop()


def test_viewer_chooses_among_the_namespaces_of_its_token(tmp_path: Path, open_page: Any) -> None:
    for expected in ("401", "403", "ERR_"):  # without a token, and in the namespace `default`
        open_page.allow(expected)
    tokens = tmp_path / "tokens"
    admin, every = new_token(tokens, "admin"), new_token(tokens, "read-only")
    some = new_token(tokens, "read-only", "run-1", "run-3")
    server = Server(tmp_path, "--backend", "memory", "--auth-tokens", str(tokens))
    try:
        for name in ("run-1", "run-2", "run-3"):
            client = LightningStore(
                server.address, token=admin, allow_insecure_token=True, namespace=name
            )
            with client as store:
                store.create_namespace(name)
                store.enqueue_rollout(1, rollout_id=f"of-{name}")
        page = open_page(f"{server.link}/#/rollouts?sort=rollout_id")
        enter(page, some)
        # The link names no namespace, and the token does not reach the default one.
        expect(page.get_by_role("link", name="of-run-1")).to_be_visible()
        assert page.url.endswith("sort=rollout_id&namespace=run-1")
        choice = page.get_by_role("combobox", name="Namespace")
        expect(choice.get_by_role("option")).to_have_text(["run-1", "run-3"])
        choice.select_option("run-3")
        expect(page.get_by_role("link", name="of-run-3")).to_be_visible()
        page.get_by_role("link", name="Overview").click()
        expect(page.locator("tbody tr td:first-child")).to_have_text(["run-1", "run-3"])
        page.get_by_role("button", name="Forget token").click()
        enter(page, every)
        expect(choice.get_by_role("option")).to_have_text(["default", "run-1", "run-2", "run-3"])
        is_live(page)
    finally:
        server.stop()
