"""Each page of the console, opened on a training of examples/cartpole."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightningstore.client import LightningStore, Rollout
from playwright.sync_api import Page, expect

from tests.console.conftest import Server
from tests.console.test_frame import PAGES, is_live
from tests.console.test_pages import cells

Open = Any
EXAMPLE = Path(__file__).parents[2] / "examples" / "cartpole"
ROUNDS, BATCH = 3, 12


class Run(NamedTuple):
    """A training that has ended, and the server that it is on."""

    server: Server
    store: LightningStore
    returns: list[float]

    def link(self, page: str) -> str:
        """Return the link of a page."""
        return f"{self.server.link}/#/{page}"

    @property
    def best(self) -> Rollout:
        """The longest episode of the last round; all randomness of the example is in its inputs."""
        last = [f"round-{ROUNDS - 1}"]
        return next(iter(self.store.list_rollouts(group_ids=last, order_by="reward desc")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The example's own algorithm and runner: three rounds of twelve episodes, some 5,400 steps."""
    server = Server(tmp_path_factory.mktemp("cartpole"), "--backend", "memory")
    try:
        with pytest.MonkeyPatch.context() as patch, LightningStore(server.address) as store:
            patch.syspath_prepend(str(EXAMPLE))
            train = importlib.import_module("train")
            runners = train.Runners(server.address, ["python"], 1)
            try:
                training = train.Training(store, ["python"], batch=BATCH, seed=1)
                for number in range(ROUNDS):
                    training.round(number, None)
            finally:
                runners.stop()
            yield Run(server, store, training.returns)
    finally:
        server.stop()


def test_each_page_opens(run: Run, open_page: Open) -> None:
    details = {
        f"rollout/{run.best.rollout_id}": f"Rollout {run.best.rollout_id}",
        "group/round-0": "Group round-0",
        "resources/cartpole": "Resources cartpole",
        "consumers/trainer": "Consumer trainer",
    }
    page = open_page(run.server.link)
    for name, title in {**PAGES, **details}.items():
        page.goto(run.link(name))
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        is_live(page)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_overview_sums_the_run_up(run: Run, open_page: Open) -> None:
    page = open_page(run.link(""))
    is_live(page)
    row = cells(page, "Namespaces")
    assert (row["Queue"], row["Running"]) == ("0", "0")
    assert row["Finished"] == str(ROUNDS * BATCH)
    spans = run.store.get_statistics().span_count
    assert row["Spans"].startswith(f"{spans:,} (")
    expect(page.get_by_role("img", name="Rewards of default")).to_be_visible()


def test_reward_rises_from_version_to_version(run: Run, open_page: Open) -> None:
    page = open_page(run.link("training"))
    figures = page.get_by_role("figure")
    expect(figures).to_have_count(6)
    reward = figures.filter(has_text="Reward").first
    reward.get_by_text("Numbers").click()
    expect(reward.locator("tbody tr")).to_have_count(ROUNDS)
    versions = reward.locator("tbody td:nth-child(2)").all_inner_texts()
    assert versions == [str(number) for number in range(1, ROUNDS + 1)]
    means = reward.locator("tbody td:nth-child(3)").all_inner_texts()
    assert means == [f"{mean:.4g}" for mean in run.returns]
    curve = [float(mean) for mean in means]
    assert curve == sorted(curve)
    assert curve[-1] > 4 * curve[0]
    succeeded = figures.filter(has_text="Succeeded").first
    succeeded.get_by_text("Numbers").click()
    expect(succeeded.locator("tbody td:nth-child(3)")).to_have_text(["1"] * ROUNDS)
    equal = figures.filter(has_text="Groups with equal rewards").first
    equal.get_by_text("Numbers").click()
    expect(equal.locator("tbody tr")).to_have_count(ROUNDS)


def test_rollouts_of_a_round_by_their_reward(run: Run, open_page: Open) -> None:
    page = open_page(run.link("rollouts?group=round-2&sort=reward+desc"))
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(BATCH)
    expect(page.locator("tbody .status.succeeded")).to_have_count(BATCH)
    rewards = [float(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] == run.best.reward
    page.get_by_label("Reward from").fill("500")
    expect(rows).to_have_count(rewards.count(500))


def test_episode_is_a_waterfall_of_its_steps(run: Run, open_page: Open) -> None:
    best = run.best
    page = open_page(run.link(f"rollout/{best.rollout_id}?tab=waterfall"))
    facts = page.locator(".facts").first
    expect(facts).to_contain_text("succeeded")
    expect(facts).to_contain_text("python-0")
    panel = page.get_by_role("tabpanel")
    expect(page.get_by_role("treeitem", name="step ").first).to_be_visible()
    count = sum(1 for _ in run.store.query_spans(best.rollout_id))
    expect(panel).to_contain_text(f"{count} spans")
    assert best.reward is not None
    assert count > best.reward  # a span for each step, and that of the reward
    page.get_by_role("treeitem", name="step ").first.click()
    expect(page.get_by_role("region", name="Span")).to_contain_text("observation")
    shown = {
        "Conversation": "None of the spans is known as a call of a model",
        "Tokens": "The spans hold no token ids",
        "Rewards and scores": f"{best.reward:.4g}",
        "Raw JSON": '"noise"',
    }
    for title, text in shown.items():
        page.get_by_role("tab", name=title).click()
        expect(panel).to_contain_text(text)


def test_group_compares_the_episodes_of_a_round(run: Run, open_page: Open) -> None:
    page = open_page(run.link("group/round-1"))
    facts = page.locator(".facts").first
    expect(facts).to_contain_text("complete")
    expect(facts).to_contain_text(f"{BATCH} of {BATCH}, {BATCH} enqueued")
    expect(facts).to_contain_text(f"{run.returns[1]:.4g} ±")
    members = page.get_by_role("region", name="Members").get_by_role("region")
    expect(members).to_have_count(BATCH)
    expect(members.first).to_contain_text("succeeded")


def test_resources_show_how_the_policy_moved(run: Run, open_page: Open) -> None:
    page = open_page(run.link("resources/cartpole"))
    expect(page.locator("tbody tr")).to_have_count(ROUNDS)
    expect(
        page.get_by_role("heading", name=f"From version {ROUNDS - 1} to version {ROUNDS}")
    ).to_be_visible()
    policy = page.locator(".change").filter(has_text="policy")
    expect(policy.locator(".diff .added").first).to_be_visible()
    expect(policy.locator(".diff")).to_contain_text("mean")


def test_worker_and_consumer_have_nothing_left(run: Run, open_page: Open) -> None:
    page: Page = open_page(run.link("workers"))
    expect(page.locator("tbody tr")).to_have_count(1)
    assert cells(page, "Workers")["Worker"] == "python-0"
    page.goto(run.link("consumers"))
    expect(page.locator("tbody tr")).to_have_count(1)
    row = cells(page, "Consumers")
    assert (row["Consumer"], row["Waiting"]) == ("trainer", "0")
