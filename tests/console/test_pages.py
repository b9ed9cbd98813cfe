"""Each page shows what it is for, by itself as training goes on."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.client import LightningStore
from playwright.sync_api import Page, expect

from tests.console import lively
from tests.console.conftest import WAIT_MS, Server
from tests.console.test_frame import is_live

Open = Any


def cells(page: Page, table: str, row: int = 0) -> dict[str, str]:
    """Return a row of a table by the titles of its columns."""
    region = page.get_by_role("region", name=table, exact=True)
    titles = [title.strip(" ↑↓") for title in region.locator("th").all_inner_texts()]
    texts = region.locator("tbody tr").nth(row).locator("td").all_inner_texts()
    return dict(zip(titles, texts, strict=True))


def test_overview_counts_what_happens(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/?namespace={namespace}")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=namespace, exact=True))
    expect(row).to_contain_text("none")  # workers
    lively.fill(store, rounds=2)
    expect(row).to_contain_text("2 busy")
    expect(row.get_by_role("img")).to_be_visible()
    row.get_by_role("link", name=namespace, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rollouts")
    assert f"namespace={namespace}" in page.url


def test_overview_says_what_needs_attention(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/?namespace={namespace}")
    notes = page.get_by_role("region", name="Needs attention").get_by_role("listitem")
    mine = notes.filter(has_text=namespace)
    store.create_consumer("slow", max_outstanding=1)
    store.enqueue_rollouts([{"input": n} for n in range(3)])
    expect(mine).to_have_count(1)
    expect(mine).to_contain_text("3 rollouts wait, and no worker has ever asked for work")
    expect(mine).to_contain_text(f"lightningstore claim --worker me --namespace {namespace}")
    store.dequeue_rollouts(1, worker_id="w")
    expect(mine).to_contain_text("Consumer slow holds back claims: 1 of 1 rollouts")
    store.pause_claims("weights")
    expect(mine.first).to_contain_text("Claims have been paused for")
    expect(mine.first).to_contain_text("weights")
    mine.first.get_by_role("button", name="Resume claims").click()
    expect(mine.first.get_by_role("button", name="No")).to_be_focused()
    mine.first.get_by_role("group").get_by_role("button", name="Resume claims").click()
    expect(mine).to_have_count(1)
    assert store.get_statistics().claim_pause is None
    store.update_consumer("slow", max_outstanding=0)
    expect(mine).to_have_count(0)


def test_training_shows_each_measure_and_compares(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/training?namespace={namespace}")
    expect(page.get_by_text("No rollout that has finished ran with")).to_be_visible()
    lively.fill(store, rounds=4, groups=1)
    figures = page.get_by_role("figure")
    expect(figures).to_have_count(6)
    reward = figures.filter(has_text="Reward").first
    reward.get_by_text("Numbers").click()
    rows = reward.locator("tbody tr")
    expect(rows).to_have_count(4)
    series = store.get_series("reward", axis="publish_number", bucket_count=100)
    means = [f"{bucket.mean:.4g}" for bucket in series]
    expect(reward.locator("tbody td:nth-child(3)")).to_have_text(means)
    page.get_by_role("checkbox", name="default").check()
    expect(reward.locator(".series")).to_have_count(2)
    assert "with=default" in page.url
    for axis in ("completion number", "time"):
        page.get_by_label("By").select_option(axis)
        expect(figures.first.locator("thead")).to_contain_text(axis)
    page.reload()
    expect(page.get_by_label("By")).to_have_value("time")
    expect(page.get_by_role("checkbox", name="default")).to_be_checked()


def test_share_of_groups_with_equal_rewards_counts_each_group(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.add_resources({"weights": 1}, resources_id="policy")
    # Of 60 groups of one publish number, the first 45 have equal rewards.
    for number in range(60):
        store.enqueue_rollouts(
            [{"input": member, "group_id": f"g{number}"} for member in range(2)],
            groups=[{"group_id": f"g{number}", "size": 2}],
        )
        for reward, rollout in enumerate(store.dequeue_rollouts(2)):
            assert rollout.latest_attempt is not None
            store.update_attempt(
                rollout.rollout_id,
                rollout.latest_attempt.attempt_id,
                status="succeeded",
                reward=0 if number < 45 else reward,
            )
    page = open_page(f"{server.link}/#/training?namespace={namespace}")
    figure = page.get_by_role("figure").filter(has_text="Groups with equal rewards")
    expect(figure.locator(".series")).to_have_text("0.75")
    figure.get_by_text("Numbers").click()
    assert figure.locator("tbody td").all_inner_texts()[1:3] == ["1", "0.75"]
    page.get_by_label("By").select_option("completion number")
    expect(figure.locator("thead")).to_contain_text("completion number of the group")


def test_axes_have_room_for_their_numbers_and_a_zone(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    rollout = store.start_rollout(1)
    assert rollout.latest_attempt is not None
    attempt = rollout.latest_attempt.attempt_id
    store.update_attempt(rollout.rollout_id, attempt, status="succeeded", reward=123_456_789)
    page = open_page(f"{server.link}/#/nothing", timezone_id="Asia/Kolkata")
    page.add_init_script(DRAWN)
    page.goto(f"{server.link}/#/nothing")
    page.reload()
    page.goto(f"{server.link}/#/training?namespace={namespace}&axis=time")
    reward = page.get_by_role("figure").filter(has_text="Reward").first
    expect(reward.locator(".series")).to_contain_text("123456789")
    eventually(page, lambda: any("100,000,000" in text for text, _ in page.evaluate("drawn")))
    assert [text for text, left in page.evaluate("drawn") if left < 0] == []
    assert not any("pm" in text or "am" in text for text, _ in page.evaluate("drawn"))
    reward.get_by_text("Numbers").click()
    time = reward.locator("tbody td:nth-child(2)").first
    expect(time).to_have_text(re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\+5:30$"))


#: Notes each text that is drawn on a canvas, with the place of its left edge.
DRAWN = """
window.drawn = [];
const { fillText } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const width = this.measureText(text).width;
  const from = { right: x - width, end: x - width, center: x - width / 2 }[this.textAlign] ?? x;
  window.drawn.push([text, this.getTransform().transformPoint({ x: from, y }).x]);
  fillText.call(this, text, x, y);
};
"""


#: Counts the pixels of each chart that have the colour of its first line.
COLOURED = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4)
        count += data[at] === 0x3b && data[at + 1] === 0x4f && data[at + 2] === 0xd8;
    return count;
})"""


def test_charts_are_drawn_and_follow(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    lively.fill(store, rounds=4, groups=1)
    page = open_page(f"{server.link}/#/training?namespace={namespace}", color_scheme="light")
    expect(page.locator("canvas")).to_have_count(6)

    def drawn() -> list[int]:
        return [count > 50 for count in page.evaluate(COLOURED)]

    eventually(page, lambda: drawn() == [True] * 6)
    before = page.evaluate(COLOURED)
    lively.enqueue(store, 9, 4)
    store.update_resources("policy", {"prompt": "another"})
    lively.finish(store, 30, random.Random(1), 0.5)
    eventually(page, lambda: page.evaluate(COLOURED)[0] not in {0, before[0]})
    eventually(page, lambda: drawn() == [True] * 6)
    page.emulate_media(color_scheme="dark")
    eventually(page, lambda: not any(page.evaluate(COLOURED)))


def eventually(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until something holds that no element shows."""
    for _ in range(WAIT_MS // 100):
        if holds():
            return
        page.wait_for_timeout(100)
    assert holds()


@pytest.mark.parametrize(
    ("link", "command"),
    [
        ("rollouts", "lightningstore enqueue"),
        ("training?axis=time", "lightningstore claim --worker me"),
        ("workers", "lightningstore claim --worker me"),
        ("consumers", "lightningstore consumers create trainer --unit group"),
    ],
)
def test_commands_are_for_the_namespace_that_is_shown(
    server: Server, open_page: Open, store: LightningStore, namespace: str, link: str, command: str
) -> None:
    page = open_page(server.link)
    is_live(page)
    page.goto(f"{server.link}/#/{link}{'&' if '?' in link else '?'}namespace={namespace}")
    lines = page.locator(".command pre").inner_text().splitlines()
    assert any(line.startswith(command) for line in lines)
    assert all(line.endswith(f" --namespace {namespace}") for line in lines)


def test_workers_show_what_they_do(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/workers?namespace={namespace}")
    expect(page.get_by_text("There are no workers yet")).to_be_visible()
    store.add_resources({"weights": 1}, resources_id="policy")
    store.update_resources("policy", {"weights": 2})
    rollout = store.enqueue_rollout(1)
    claimed = store.dequeue_rollouts(1, worker_id="w-1")
    store.heartbeat("w-1", stats={"load": 0.25}, attempts=claimed, publish_number=1)
    store.heartbeat("w-2")
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody tr").first).to_contain_text("1 behind")
    row = cells(page, "Workers")
    assert (row["Worker"], row["Status"]) == ("w-1", "busy")
    assert (row["Works on"], row["Statistics"]) == (rollout.rollout_id, '{"load":0.25}')
    page.get_by_label("Status").select_option("unknown")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.reload()
    expect(page.locator("tbody tr")).to_contain_text("w-2")
    page.get_by_role("textbox", name="Worker").fill("nothing")
    page.get_by_role("textbox", name="Worker").press("Enter")
    expect(page.get_by_text("No worker matches these filters.")).to_be_visible()


def test_consumers_show_how_far_behind_they_are(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/consumers?namespace={namespace}")
    expect(page.get_by_text("lightningstore consumers create")).to_be_visible()
    store.create_consumer("judge", max_lag=2)
    for number in range(3):
        started = store.start_rollout(number, rollout_id=f"r{number}")
        assert started.latest_attempt is not None
        store.update_attempt(
            started.rollout_id, started.latest_attempt.attempt_id, status="succeeded"
        )
    expect(page.locator("tbody td:nth-child(3)")).to_have_text("3")
    (delivery,) = store.pull_finished("judge")
    expect(page.locator("tbody td:nth-child(5)")).to_have_text("1")
    assert cells(page, "Consumers")["Waiting"] == "2"
    page.get_by_role("link", name="judge").click()
    expect(page.get_by_role("link", name="r0")).to_be_visible()
    store.acknowledge("judge", delivery, "released", note="again, please")
    expect(page.get_by_text("again, please")).to_be_visible()
    page.get_by_label("State").select_option("set-aside")
    expect(page.get_by_text("There are none.")).to_be_visible()
    page.reload()
    expect(page.get_by_label("State")).to_have_value("set-aside")


def test_resources_show_what_changed_and_who_runs_it(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    page = open_page(f"{server.link}/#/resources?namespace={namespace}")
    expect(page.get_by_text("There are no resources")).to_be_visible()
    text = "one\ntwo\nthree\n"
    store.add_resources({"prompt": text, "extra": {"a": 1}}, resources_id="policy")
    store.update_resources("policy", {"prompt": text, "extra": {"a": 1}})
    store.heartbeat("w-1", publish_number=2)
    page.get_by_role("link", name="policy").click()
    expect(page.locator("tbody tr").first).to_contain_text("w-1")
    changes = page.locator(".diff .added, .diff .removed")
    expect(page.locator(".diff")).to_have_count(2)
    expect(changes).to_have_count(0)
    store.update_resources("policy", {"prompt": text.replace("two", "<b>2</b>")})
    expect(page.locator("tbody tr")).to_have_count(3)
    prompt = page.locator(".change").filter(has_text="prompt")
    assert prompt.locator(".diff span").all_inner_texts() == [
        "  one\n",
        "− two\n",
        "+ <b>2</b>\n",
        "  three\n",
    ]
    expect(page.locator(".change").filter(has_text="extra").locator(".removed")).to_have_count(3)
    page.get_by_label("to version").select_option("2")
    page.get_by_label("From version").select_option("1")
    expect(changes).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="From version 1 to version 2")).to_be_visible()


def test_resources_without_their_oldest_versions(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    open_page.allow("404")  # the answer that a version was removed
    for number in range(13):
        store.update_resources("policy", {"number": number})
    page = open_page(f"{server.link}/#/resources/policy?namespace={namespace}&version=1")
    expect(page.locator("tbody tr")).to_have_count(10)
    # The link of a rollout leads to the version that it ran with, never to another one.
    expect(page.get_by_text("Version 1 is not kept any more.")).to_be_visible()
    expect(page.locator(".diff")).to_have_count(0)
    page.get_by_role("link", name="13").click()
    expect(page.get_by_role("heading", name="From version 12 to version 13")).to_be_visible()
    expect(page.get_by_text("not kept")).to_have_count(0)
    is_live(page)


def test_resources_show_an_old_version_that_the_link_names(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.update_namespace(namespace, keep_resource_versions=40)
    for number in range(30):
        store.update_resources("policy", {"number": number, **({"new": 1} if number > 4 else {})})
    page = open_page(f"{server.link}/#/resources/policy?namespace={namespace}&version=6")
    expect(page.get_by_role("heading", name="From version 5 to version 6")).to_be_visible()
    assert page.locator(".change h3").all_inner_texts() == ["number changed", "new added"]
    assert page.locator(".diff span").all_inner_texts() == ["− 4\n", "+ 5\n", "+ 1\n"]
    page.get_by_label("From version").select_option("30")
    expect(page.get_by_role("heading", name="From version 30 to version 6")).to_be_visible()


@pytest.mark.parametrize(
    ("free", "size", "text"),
    [
        (9 << 30, 100, "9.00 GiB"),
        (1010 << 20, 100, "0.986 GiB"),
        (11 << 30, 100, ""),
        (11 << 30, 900, ""),
    ],
)
def test_overview_says_when_the_disk_is_nearly_full(
    server: Server, open_page: Open, free: int, size: int, text: str
) -> None:
    with LightningStore(server.address) as store:
        counters = store.get_statistics().message
    counters.disk_free_bytes, counters.disk_bytes = free, size << 30
    body = counters.SerializeToString()
    page = open_page(f"{server.link}/#/nothing")
    page.route(
        "**/GetStatistics",
        lambda route: route.fulfill(content_type="application/proto", body=body),
    )
    page.goto(f"{server.link}/#/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    is_live(page)
    notes = page.get_by_text("are free on the disk of the data file.")
    expect(notes).to_have_count(1 if text else 0)
    if text:
        expect(notes).to_contain_text(f"Only {text} of 100 GiB")
    page.unroute_all(behavior="wait")
