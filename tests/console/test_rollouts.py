"""The list of rollouts."""

from __future__ import annotations

from typing import Any

import pytest
from lightningstore.client import LightningStore
from playwright.sync_api import expect

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


def test_pages_follow_each_other(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n:03}"} for n in range(120)])
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
