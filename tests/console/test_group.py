"""The page of one group."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lightningstore.client import LightningStore
from playwright.sync_api import Page, expect

from tests.console import traced
from tests.console.accessible import violations
from tests.console.conftest import Server
from tests.console.traced import assistant, call, user

Open = Callable[..., Page]
BEGUN = [traced.SYSTEM, user("Name a colour")]


def fill(store: LightningStore) -> None:
    """Make a group of three: two members differ in their second answer, one waits."""
    members = [{"input": 1, "rollout_id": name, "group_id": "g"} for name in "abc"]
    store.enqueue_rollouts(members, groups=[{"group_id": "g", "size": 3, "deadline": 600}])
    for name, colour, reward in (("a", "Blue", 1.0), ("b", "Green", 0.25)):
        store.start_attempt(name, worker_id="gpu-7")
        more = [*BEGUN, assistant("Red"), user("Another")]
        spans = [call("1", BEGUN, assistant("Red"), 1), call("2", more, assistant(colour), 2)]
        traced.add(store, name, *spans)
        store.update_attempt(name, "latest", status="succeeded", reward=reward)


def test_members_are_compared_where_they_differ(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    fill(store)
    page = open_page(f"{server.link}/#/group/g?namespace={namespace}")
    for _ in range(2):
        facts = page.locator(".facts").first
        expect(facts).to_contain_text("open")
        expect(facts).to_contain_text("2 of 3, 3 enqueued")
        expect(facts).to_contain_text("0.625 ± 0.375")
        expect(page.get_by_role("heading", name="Members: they agree on 1 answer")).to_be_visible()
        expect(page.get_by_role("region", name="a", exact=True)).to_contain_text("Blue")
        expect(page.get_by_role("region", name="b", exact=True)).to_contain_text("Green")
        expect(page.get_by_role("region", name="c", exact=True)).to_contain_text("queuing")
        page.reload()
    # It follows what happens.
    store.start_attempt("c")
    store.update_attempt("c", "latest", status="failed", reward=0)
    expect(facts).to_contain_text("complete")
    expect(page.get_by_role("region", name="c", exact=True)).to_contain_text("failed")
    page.get_by_role("link", name="b", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rollout b")
    page.get_by_role("link", name="g", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Group g")


def test_label_and_empty_group(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    open_page.allow("404")  # type: ignore[attr-defined]
    # An id may come from anywhere. The command passes it on, and does nothing else with it.
    page = open_page(f"{server.link}/#/group/$(id)'%22?namespace={namespace}")
    command = page.locator(".command pre")
    expect(command).to_have_text(
        """lightningstore enqueue --group '$(id)'\\''"' '{"question": 1}' --namespace """
        + namespace
    )
    page.goto(f"{server.link}/#/group/g?namespace={namespace}")
    expect(command).to_contain_text("--group 'g'")
    store.enqueue_rollout(1, rollout_id="r", group_id="g")
    expect(page.locator(".note")).to_contain_text("This id is a label of these rollouts")
    expect(page.get_by_role("region", name="r", exact=True)).to_be_visible()


def test_large_group_says_what_is_shown_of_it(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    open_page.allow("404")  # type: ignore[attr-defined]
    members = [{"input": n, "rollout_id": f"r{n:02}", "group_id": "g"} for n in range(65)]
    store.enqueue_rollouts(members[:64])
    page = open_page(f"{server.link}/#/group/g?namespace={namespace}")
    regions = page.get_by_role("region", name="Members").get_by_role("region")
    expect(regions).to_have_count(64)
    rest = page.get_by_role("link", name="All members as a list")
    expect(rest).to_have_count(0)
    store.enqueue_rollouts(members[64:])
    expect(page.get_by_text("The first 64 members are compared here.")).to_be_visible()
    rest.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rollouts")
    expect(page.get_by_role("textbox", name="Group")).to_have_value("g")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("tbody tr")).to_have_count(15)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(
    server: Server, open_page: Open, store: LightningStore, namespace: str, theme: str
) -> None:
    fill(store)
    page = open_page(f"{server.link}/#/group/g?namespace={namespace}", color_scheme=theme)
    expect(page.get_by_role("region", name="b", exact=True)).to_contain_text("Green")
    assert violations(page) == []
