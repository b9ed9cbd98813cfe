"""The list of rollouts."""

from __future__ import annotations

from typing import Any

import pytest
from lightningstore.client import LightningStore
from playwright.sync_api import Route, expect

from tests.console import clock
from tests.console.conftest import Server
from tests.console.test_frame import is_live

Open = Any


def test_filters_change_link_and_table(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.link}/#/rollouts")
    is_live(page)
    rows = page.locator("tbody tr")
    page.get_by_role("checkbox", name="failed").check()
    expect(page.locator("tbody .status.succeeded")).to_have_count(0)
    expect(rows.first).to_contain_text("Timeout: the model <b>did not</b> answer")
    assert "status=failed" in page.url
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Group").fill("round-1-2")
    expect(rows).to_have_count(4)
    page.reload()
    expect(rows).to_have_count(4)
    expect(page.get_by_label("Group")).to_have_value("round-1-2")
    page.get_by_label("Group").fill("")
    page.get_by_label("Queue").fill("evaluation")
    expect(rows).to_have_count(1)
    page.get_by_label("Queue").fill("")
    page.get_by_label("Failure").fill("WITHIN 30")
    expect(page.locator("tbody .status.succeeded")).to_have_count(0)
    expect(rows.first).to_contain_text("within 30 s")
    page.get_by_label("Failure").fill("of another kind")
    expect(page.get_by_text("No rollout matches these filters.")).to_be_visible()
    page.get_by_label("Reward from").fill("much")
    expect(page.get_by_role("alert")).to_contain_text("“much” must be a number")


def enqueue_pages(store: LightningStore) -> None:
    """Enqueue the rollouts of three pages, r000 to r119."""
    store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n:03}"} for n in range(120)])


def test_pages_follow_each_other(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    enqueue_pages(store)
    page = open_page(f"{server.link}/#/rollouts?namespace={namespace}&sort=rollout_id+asc")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("r000")
    page.get_by_role("button", name="Next").click()
    expect(first).to_contain_text("r050")
    page.get_by_role("button", name="Next").click()
    expect(first).to_contain_text("r100")
    page.reload()
    expect(first).to_contain_text("r100")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="First page").click()
    expect(first).to_contain_text("r000")
    page.get_by_role("button", name="Rollout").click()
    expect(first).to_contain_text("r119")


def test_finish_is_shown_by_itself(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/rollouts?namespace={namespace}")
    expect(page.get_by_text("There are no rollouts yet")).to_be_visible()
    expect(page.get_by_text("lightningstore enqueue")).to_be_visible()
    rollout = store.start_rollout(1)
    expect(page.locator("tbody .status")).to_have_text("preparing")
    assert rollout.latest_attempt is not None
    store.update_attempt(
        rollout.rollout_id, rollout.latest_attempt.attempt_id, status="succeeded", reward=0.625
    )
    expect(page.locator("tbody .status")).to_have_text("succeeded")
    expect(page.locator("tbody tr")).to_contain_text("0.625")


@pytest.mark.parametrize(
    ("link", "shown", "before", "after"),
    [
        ("rollouts", "tbody .status", "preparing", "succeeded"),
        ("rollout/r", ".facts .status", "preparing", "succeeded"),
        ("", "tbody tr:has(a:text-is('{}')) td:nth-child(5)", "0", "1"),
    ],
    ids=["list", "rollout", "overview"],
)
def test_finish_is_shown_within_a_second(
    server: Server,
    open_page: Open,
    store: LightningStore,
    namespace: str,
    link: str,
    shown: str,
    before: str,
    after: str,
) -> None:
    """The second is one of the page's clock: how long the page waits, on a machine of any speed."""
    rollout = store.start_rollout(1, rollout_id="r")
    assert rollout.latest_attempt is not None
    page = clock.open_stopped(open_page, f"{server.link}/#/{link}?namespace={namespace}")
    status = page.locator(shown.format(namespace))
    assert status.text_content() == before
    store.update_attempt(
        rollout.rollout_id, rollout.latest_attempt.attempt_id, status="succeeded", reward=1
    )
    assert status.text_content() == before
    clock.let_pass(page, 1000)
    assert status.text_content() == after


def test_filter_is_typed_with_pauses(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.link}/#/rollouts")
    is_live(page)
    group = page.get_by_label("Group")
    group.focus()
    for typed in ("round", "-1", "-2"):
        page.keyboard.type(typed)
        page.wait_for_url(f"**{typed}")  # the filter is applied after a pause
        is_live(page)
        expect(group).to_be_focused()
    expect(group).to_have_value("round-1-2")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_role("button", name="Clear filters").click()
    expect(group).to_have_value("")


def test_filter_that_was_not_applied_stays_on_its_page(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.link}/#/nothing")
    page.clock.install()
    page.goto(f"{server.link}/#/rollouts")
    is_live(page)
    page.get_by_label("Group").focus()
    page.keyboard.type("round-1-2")
    page.evaluate("window.location.hash = '#/workers'")
    expect(page.get_by_role("heading", level=1)).to_have_text("Workers")
    page.clock.run_for(2000)
    assert page.url.endswith("#/workers")


def test_rows_of_another_filter_are_not_those_of_this_one(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.link}/#/rollouts?group=nothing")
    expect(page.get_by_text("No rollout matches these filters.")).to_be_visible()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/ListRollouts", hold)
    page.get_by_role("button", name="Clear filters").click()
    expect(page.get_by_role("button", name="Clear filters")).to_have_count(0)
    # Whether there are rollouts is not known yet.
    expect(page.locator(".empty")).to_have_count(0)
    page.unroute("**/ListRollouts")  # sends what was held
    expect(page.locator("tbody tr").nth(20)).to_be_visible()


def test_page_before_is_known_after_a_rollout_was_opened(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    enqueue_pages(store)
    page = open_page(f"{server.link}/#/rollouts?namespace={namespace}&sort=rollout_id+asc")
    first = page.locator("tbody tr").first
    previous = page.get_by_role("button", name="Previous")
    for row in ("r050", "r100"):
        page.get_by_role("button", name="Next").click()
        expect(first).to_contain_text(row)
    page.get_by_role("link", name="r110").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rollout r110")
    page.go_back()
    expect(first).to_contain_text("r100")
    previous.click()
    expect(first).to_contain_text("r050")
    # A link that is opened cold has none before it that is known.
    page.reload()
    expect(first).to_contain_text("r050")
    expect(previous).to_be_disabled()
