"""Accessibility (contrast, names, keyboard), restarts, roles, and text that looks like HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import Failure, LightningStore
from playwright.sync_api import Route, expect

from tests.console import traced
from tests.console.accessible import violations
from tests.console.conftest import Server
from tests.console.test_frame import is_live

Open = Any
#: Every kind of page, with content.
LINKS = (
    "",
    "training",
    "rollouts?status=failed,succeeded",
    "rollouts?group=nothing",
    "workers",
    "consumers",
    "consumers/trainer",
    "resources",
    "resources/policy",
    "nothing",
)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(server: Server, open_page: Open, theme: str) -> None:
    page = open_page(server.link, color_scheme=theme, reduced_motion="reduce")
    is_live(page)
    found = {}
    for link in LINKS:
        page.evaluate(f"window.location.hash = {json.dumps(f'#/{link}')}")
        expect(page.locator(f"html[data-theme={theme}]")).to_have_count(1)
        is_live(page)
        if problems := violations(page):
            found[link] = problems
    assert found == {}


def test_theme_is_kept(server: Server, open_page: Open) -> None:
    page = open_page(server.link, color_scheme="light")
    page.get_by_label("Theme").select_option("dark")
    for _ in range(2):
        expect(page.locator("html[data-theme=dark]")).to_have_count(1)
        page.reload()


def test_nothing_is_wider_than_a_phone(server: Server, open_page: Open) -> None:
    page = open_page(server.link, viewport={"width": 375, "height": 700})
    for link in LINKS:
        page.goto(f"{server.link}/#/{link}")
        is_live(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, link


def test_long_namespace_fits_on_a_phone(server: Server, open_page: Open) -> None:
    name = "n" * 63
    with LightningStore(server.address) as store:
        store.create_namespace(name)
    page = open_page(server.link, viewport={"width": 375, "height": 700})
    is_live(page)
    option = page.get_by_role("combobox", name="Namespace").get_by_role("option", name=name)
    expect(option).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.context.close()  # nothing asks for the namespace any more
    with LightningStore(server.address) as store:
        store.delete_namespace(name)


def test_keyboard_reaches_content_and_filters(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.link}/#/rollouts")
    is_live(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert page.url.endswith("#/rollouts")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("queuing", exact=True)).to_be_checked()
    page.get_by_label("succeeded").focus()
    page.keyboard.press("Space")
    expect(page.locator("tbody .status.succeeded").first).to_be_visible()
    assert "status=queuing%2Csucceeded" in page.url


def test_restart_of_the_server_is_shown_and_survived(tmp_path: Path, open_page: Open) -> None:
    open_page.allow("ERR_")  # connections that are refused
    server = Server(tmp_path, "--grace", "0")
    try:
        with LightningStore(server.address) as store:
            store.enqueue_rollout(1, rollout_id="before")
        page = open_page(f"{server.link}/#/rollouts")
        expect(page.get_by_role("link", name="before")).to_be_visible()
        server.stop()
        expect(page.locator(".connection")).to_have_text("connection lost")
        expect(page.get_by_role("alert")).to_contain_text("Connection lost, trying again")
        expect(page.get_by_role("link", name="before")).to_be_visible()
        server.start("--http-port", server.link.rpartition(":")[2])
        with LightningStore(server.address) as store:
            store.enqueue_rollout(1, rollout_id="after")
        expect(page.get_by_role("link", name="after")).to_be_visible()
        is_live(page)
        expect(page.get_by_role("alert")).to_have_count(0)
    finally:
        server.stop()


def test_view_that_was_opened_while_the_server_was_down_is_loaded(
    tmp_path: Path, open_page: Open
) -> None:
    open_page.allow("ERR_")  # connections that are refused
    server = Server(tmp_path, "--grace", "0")
    try:
        with LightningStore(server.address) as store:
            traced.claimed(store, "r")
            traced.add(store, "r", traced.plain("root", "the root", 0, 1))
        page = open_page(f"{server.link}/#/rollout/r")
        is_live(page)
        server.stop()
        expect(page.locator(".connection")).to_have_text("connection lost")
        page.get_by_role("tab", name="Waterfall").click()
        expect(page.get_by_role("tabpanel").get_by_text("Loading")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("group").get_by_role("button", name="Cancel").click()
        failed = page.get_by_role("alert").filter(has_text="the server was not reached")
        expect(failed).to_be_visible()
        server.start("--http-port", server.link.rpartition(":")[2])
        expect(page.get_by_role("treeitem")).to_contain_text("the root")
    finally:
        server.stop()


def test_server_that_hangs_is_not_live(server: Server, open_page: Open) -> None:
    page = open_page(server.link)
    is_live(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/GetStatistics", hold)
    expect(page.locator(".connection")).to_have_text("connection lost")
    expect(page.get_by_role("alert")).to_contain_text("What is shown may be out of date")
    page.unroute("**/GetStatistics")
    is_live(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_hostile_text_is_shown_as_text(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    store.add_resources({hostile: hostile}, resources_id=hostile)
    store.create_consumer("c")
    rollout = store.start_rollout(
        1, rollout_id=hostile, group_id=hostile, worker_id=hostile, labels={"a": hostile[:60]}
    )
    assert rollout.latest_attempt is not None
    failure = Failure(hostile, hostile)
    store.update_attempt(
        hostile, rollout.latest_attempt.attempt_id, status="failed", failure=failure
    )
    store.heartbeat(hostile, stats={hostile: hostile}, publish_number=1)
    (delivery,) = store.pull_finished("c")
    store.acknowledge("c", delivery, "released", note=hostile)
    page = open_page(f"{server.link}/#/?namespace={namespace}")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    links = (
        *("", "training", "rollouts", "workers", "consumers", "consumers/c", "resources"),
        *("rollouts?status=<b>x</b>", "<b>x</b>"),
    )
    for link in links:
        joint = "&" if "?" in link else "?"
        page.goto(f"{server.link}/#/{link}{joint}namespace={namespace}")
        is_live(page)
        assert page.locator("main img[src], main script, main b:text('x')").count() == 0
    page.goto(f"{server.link}/#/resources?namespace={namespace}")
    page.locator("tbody a").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Resources {hostile}")
    expect(page.locator(".diff")).to_contain_text(hostile)
    page.goto(f"{server.link}/#/rollouts?namespace={namespace}")
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(hostile)
