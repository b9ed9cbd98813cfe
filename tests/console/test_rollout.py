"""The page of one rollout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import Failure, LightningStore
from playwright.sync_api import Page, expect

from tests.console import traced
from tests.console.accessible import violations
from tests.console.conftest import COMMAND, Server
from tests.console.test_frame import is_live
from tests.console.traced import assistant, call, user
from tests.recorded import STACKS

Open = Callable[..., Page]
TABS = ["Conversation", "Waterfall", "Tokens", "Rewards and scores", "Raw JSON"]
STACKS_WITH_CALLS = sorted(set(STACKS) - {"autogen-native"})


def link(server: Server, namespace: str, rollout_id: str, **state: str) -> str:
    """Return the link of a rollout."""
    more = "".join(f"&{name}={value}" for name, value in state.items())
    return f"{server.link}/#/rollout/{rollout_id}?namespace={namespace}{more}"


def open_tab(page: Page, title: str) -> None:
    """Choose a tab."""
    page.get_by_role("tab", name=title).click()
    expect(page.get_by_role("tab", name=title)).to_have_attribute("aria-selected", "true")


def test_each_tab_survives_a_reload(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.recorded(store, "openinference-openai")
    page = open_page(link(server, namespace, "openinference-openai"))
    content = {
        "Conversation": "It is sunny in Paris today",
        "Waterfall": "ChatCompletion",
        "Tokens": "trained",
        "Rewards and scores": "0.8",
        "Raw JSON": '"rolloutId": "openinference-openai"',
    }
    for title in TABS:
        open_tab(page, title)
        expect(page.get_by_role("tabpanel")).to_contain_text(content[title])
        page.reload()
        is_live(page)
        expect(page.get_by_role("tab", name=title)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel")).to_contain_text(content[title])
    page.get_by_role("tab", name=TABS[-1]).press("Home")
    expect(page.get_by_role("tab", name=TABS[0])).to_be_focused()


def test_head_says_how_it_went(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    attempt_id = traced.claimed(store, "r1")
    failure = Failure("ToolError", "the <b>search</b> failed")
    store.update_attempt("r1", attempt_id, status="failed", failure=failure, reward=-0.25)
    traced.claimed(store, "r2")
    store.start_attempt("r1", worker_id="gpu-8")
    page = open_page(link(server, namespace, "r1"))
    facts = page.locator(".facts").first
    expect(facts).to_contain_text("preparing")
    expect(facts).to_contain_text("gpu-8")
    expect(facts).to_contain_text("suite=console")
    expect(page.get_by_role("tabpanel")).to_contain_text("add_spans")
    page.get_by_label("Attempt").select_option(attempt_id)
    expect(facts).to_contain_text("-0.25")
    expect(facts).to_contain_text("gpu-7")
    expect(page.locator(".note.bad")).to_contain_text("ToolError")
    expect(page.locator(".note.bad")).to_contain_text("the <b>search</b> failed")
    page.reload()
    expect(facts).to_contain_text("gpu-7")


def test_tokens_show_what_is_trained_and_how_likely(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    traced.add(store, "r", traced.sampled("a", list(range(1990)), [7, 8, 9], [-0.1, -3.0, -9.5]))
    store.update_attempt("r", "latest", status="succeeded", reward=0.5, scores={"style": 0.25})
    page = open_page(link(server, namespace, "r", tab="tokens"))
    panel = page.get_by_role("tabpanel")
    expect(panel).to_contain_text("1,993 tokens, 3 trained, reward 0.5")
    tokens = panel.get_by_role("listitem")
    expect(tokens).to_have_count(1500)
    panel.get_by_role("button", name="Next").click()
    expect(tokens).to_have_count(493)
    last = panel.get_by_title("token 1993: id 9, trained, log-probability -9.5")
    expect(last).to_have_class("token trained p0")
    first = panel.get_by_title("token 1991: id 7, trained, log-probability -0.1, begins answer 1")
    expect(first).to_have_class("token trained p4 first")
    expect(panel.get_by_title("token 1990: id 1989, not trained")).to_have_class("token")
    open_tab(page, "Rewards and scores")
    expect(panel).to_contain_text("style")
    expect(panel).to_contain_text("0.25")
    expect(panel.get_by_role("link", name="gpu-7")).to_be_visible()


def test_tokens_are_read_as_text_where_spans_have_it(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    listed = [
        {"token": " <b>Hi", "logprob": -0.1},
        {"token": "\n", "logprob": -0.2},
        {"token": "token_id:9", "logprob": -0.3},
        {"bytes": [195, 169], "logprob": -0.4},
    ]
    span = traced.call(
        "a",
        [user("Count")],
        assistant("Counted"),
        1,
        prompt_token_ids=[5, 6],
        response_token_ids=[7, 8, 9, 10],
        **{"logprobs.content": json.dumps(listed)},
    )
    traced.claimed(store, "r")
    traced.add(store, "r", span)
    page = open_page(link(server, namespace, "r", tab="tokens"))
    tokens = page.get_by_role("tabpanel").get_by_role("listitem")
    expect(tokens).to_have_count(6)
    # The first child is what is seen; the rest is for readers of screens.
    seen = tokens.evaluate_all("items => items.map((item) => item.firstChild.textContent)")
    assert seen == ["5", "6", " <b>Hi", "⏎", "9", "é"]
    title = "token 3: id 7, trained, log-probability -0.1, begins answer 1"
    expect(tokens.nth(2)).to_have_attribute("title", title)
    expect(tokens.nth(2).locator(".hidden")).to_contain_text("id 7, trained")


def test_cancel_and_retry_ask_once(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.enqueue_rollout(1, rollout_id="r")
    page = open_page(link(server, namespace, "r"))
    status = page.locator(".facts .status")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="No").click()
    expect(status).to_have_text("queuing")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("group", name="Cancel").get_by_role("button", name="Cancel").click()
    expect(status).to_have_text("cancelled")
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("group", name="Retry").get_by_role("button", name="Retry").click()
    expect(status).to_have_text("queuing")


def test_copied_command_gets_the_rollout(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.enqueue_rollout(1, rollout_id="it's $HOME")
    page = open_page(
        link(server, namespace, "it's%20%24HOME"), permissions=["clipboard-read", "clipboard-write"]
    )
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["rollout"]["rolloutId"] == "it's $HOME"


def test_read_only_token_sees_no_buttons_and_copies_no_token(
    tmp_path: Path, open_page: Any
) -> None:
    secret = new_token(tmp_path, "read-only")
    admin = new_token(tmp_path, "admin")
    server = Server(tmp_path, "--backend", "memory", "--auth-tokens", "tokens", "--insecure")
    try:
        with LightningStore(server.address, token=admin, allow_insecure_token=True) as store:
            store.enqueue_rollout(1, rollout_id="r")
        open_page.allow("status of 40")
        open_page.allow("ERR_")  # the server stops before the browser does
        page = open_page(
            f"{server.link}/#/rollout/r", permissions=["clipboard-read", "clipboard-write"]
        )
        page.get_by_label("Token").fill(secret)
        page.get_by_role("button", name="Open the console").click()
        expect(page.locator(".facts .status")).to_have_text("queuing")
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        command = page.evaluate("navigator.clipboard.readText()")
        assert "Bearer $TOKEN" in command
        assert secret not in command
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    finally:
        server.stop()


def new_token(folder: Path, role: str) -> str:
    """Add a token to the tokens file."""
    made = subprocess.run(
        [COMMAND, "token", "new", "--file", folder / "tokens", "--role", role, "--name", role],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.split()[0]


def test_missing_rollout_is_an_error_in_words(
    server: Server, open_page: Open, namespace: str
) -> None:
    open_page.allow("404")  # type: ignore[attr-defined]
    page = open_page(link(server, namespace, "gone"))
    expect(page.get_by_role("alert")).to_contain_text("ROLLOUT_NOT_FOUND")


def test_rollout_in_the_queue_says_how_to_claim_it(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    store.enqueue_rollout(1, rollout_id="waiting", queue="slow")
    page = open_page(link(server, namespace, "waiting"))
    # Without --id, it would claim another one.
    expect(page.get_by_role("tabpanel").locator(".command pre")).to_have_text(
        f"lightningstore claim --id 'waiting' --namespace {namespace}"
    )
    open_tab(page, "Raw JSON")
    expect(page.get_by_role("tabpanel")).to_contain_text('"queue": "slow"')
    open_tab(page, "Conversation")
    store.cancel_rollouts(["waiting"])
    expect(page.get_by_role("tabpanel")).to_contain_text("cancelled before a worker claimed it")
    expect(page.locator(".command")).to_have_count(0)


def test_attempt_that_is_missing_is_not_another_one(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    store.update_attempt("r", "latest", status="failed")
    page = open_page(link(server, namespace, "r", attempt="gone"))
    expect(page.locator(".note")).to_contain_text("This rollout has no attempt gone")
    expect(page.get_by_text("No worker has claimed")).to_have_count(0)
    page.get_by_role("button", name="Show the latest one").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("This attempt has no spans")
    expect(page.locator(".facts").first).to_contain_text("gpu-7")
    expect(page.get_by_text("none yet")).to_have_count(0)


def test_digits_before_the_point_are_not_rounded_away(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    traced.add(store, "r", traced.plain("short", "short", 0, 0.0003), traced.plain("b", "b", 0, 1))
    scores = {"length": 12345, "large": 1234567.8, "small": 0.00012346, "none": 0, "low": -4.0}
    store.update_attempt("r", "latest", status="succeeded", reward=98765.43, scores=scores)
    page = open_page(link(server, namespace, "r", tab="scores"))
    expect(page.locator(".facts").first).to_contain_text("98765")
    shown = page.get_by_role("tabpanel").locator(".facts").first
    for name, text in (
        *(("length", "12345"), ("large", "1234568"), ("small", "0.0001235")),
        *(("none", "0"), ("low", "-4")),
    ):
        fact = shown.locator("div").filter(has=page.get_by_text(name, exact=True))
        expect(fact.locator("dd")).to_have_text(text)
    open_tab(page, "Waterfall")
    expect(page.get_by_role("treeitem").filter(has_text="short")).to_contain_text("0.3 ms")


def test_long_conversation_is_read_once(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    """Other changes in the namespace do not make anew what is shown of it."""
    traced.claimed(store, "r")
    traced.add(store, "r", traced.call("a", [traced.user("q")], traced.assistant("answer"), 1))
    page = open_page(f"{server.link}/#/nothing")
    page.add_init_script(COUNTING)
    page.goto(link(server, namespace, "r"))
    page.reload()
    expect(page.locator(".turn")).to_contain_text("answer")
    assert page.evaluate("window.trimmed") == 1
    for number in range(3):
        with page.expect_response("**/GetRollout"):
            store.enqueue_rollout(number)
    assert page.evaluate("window.trimmed") == 1


#: Counts the texts that are compared to find out what a prompt repeats.
COUNTING = """
window.trimmed = 0;
const { trim } = String.prototype;
String.prototype.trim = function () {
  if (String(this) === "answer") window.trimmed += 1;
  return trim.call(this);
};
"""


def test_conversation_of_each_stack_reads_the_same(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    for stack in STACKS_WITH_CALLS:
        traced.recorded(store, stack)
    page = open_page(link(server, namespace, STACKS_WITH_CALLS[0]))
    for stack in STACKS_WITH_CALLS:
        page.goto(link(server, namespace, stack))
        expect(page.get_by_role("heading", level=1)).to_have_text(f"Rollout {stack}")
        first, second = page.locator(".turn").first, page.locator(".turn").nth(1)
        expect(first.locator(".message h3")).to_contain_text(["system", "user", "assistant"])
        expect(first).to_contain_text("How is the weather in Paris")
        expect(first.locator(".tool")).to_contain_text("get_weather")
        expect(first.locator(".tool")).to_contain_text('"city": "Paris"')
        # What the first call has shown is folded.
        expect(second.locator(".message h3").first).to_contain_text("tool")
        expect(second).to_contain_text("Continues call 1: 3 messages before")
        expect(second).to_contain_text("sunny")


def test_branches_are_marked_and_parts_shown(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    dot = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    pictures = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": dot}},
            {"type": "image_url", "image_url": {"url": "https://example.test/cat.png"}},
        ],
    }
    begun = [traced.SYSTEM, user("Name a colour")]
    red = {**assistant("Red"), "reasoning_content": "Any colour will do."}
    traced.claimed(store, "r")
    traced.add(
        store,
        "r",
        call("a", begun, red, 1),
        call("b", [*begun, assistant("Red"), pictures], assistant("A dot"), 2),
        call("c", [*begun, assistant("Red"), user("Another")], assistant("Blue"), 3),
        call("d", [traced.SYSTEM, user("Something else")], assistant("Fine"), 4),
    )
    page = open_page(link(server, namespace, "r"))
    turns = page.locator(".turn")
    expect(turns).to_have_count(4)
    reasoning = turns.nth(0).locator(".reasoning")
    expect(reasoning.locator(".said")).to_be_hidden()
    reasoning.locator("summary").click()
    expect(reasoning).to_contain_text("Any colour will do.")
    expect(turns.nth(1)).to_contain_text("Continues call 1")
    expect(turns.nth(1).get_by_role("img")).to_have_count(1)
    expect(turns.nth(1).get_by_role("link", name="https://example.test/cat.png")).to_be_visible()
    expect(turns.nth(2)).to_contain_text("Branch: shares 3 messages with call 1")
    turns.nth(2).locator(".before summary").click()
    expect(turns.nth(2)).to_contain_text("Name a colour")
    expect(turns.nth(3).locator(".before")).to_have_count(0)


def test_spans_appear_while_it_runs(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    page = open_page(link(server, namespace, "r", tab="waterfall"))
    expect(page.get_by_role("tabpanel")).to_contain_text("This attempt has no spans")
    traced.add(store, "r", traced.plain("a", "first step", 1, 2))
    expect(page.get_by_role("treeitem")).to_have_count(1)
    traced.add(store, "r", traced.plain("b", "second step", 2, 3))
    expect(page.get_by_role("treeitem")).to_have_count(2)
    store.update_attempt("r", "latest", status="succeeded", reward=1)
    expect(page.locator(".facts .status")).to_have_text("succeeded")


def test_waterfall_zooms_folds_and_shows_a_span(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    traced.add(
        store,
        "r",
        traced.plain("root", "agent run", 0.1, 8.1),
        call("a", [user("Hi")], assistant("Ho"), 1, "root"),
        traced.failed("tool", 4, "root"),
    )
    page = open_page(link(server, namespace, "r", tab="waterfall"))
    rows = page.get_by_role("treeitem")
    expect(rows).to_have_count(3)
    tool = page.get_by_role("treeitem", name="error: execute_tool search 200 ms")
    expect(tool).to_contain_text("✗")
    tool.click()
    details = page.get_by_role("region", name="Span")
    expect(details).to_contain_text("TimeoutError")
    expect(details).to_contain_text("no answer within 5 s")
    expect(details).to_contain_text("Link to span")
    page.reload()
    expect(details).to_contain_text("TimeoutError")
    details.locator("button.link").click()
    expect(details.get_by_role("heading", name="agent run")).to_be_visible()
    tree = page.get_by_role("tree")
    tree.press("ArrowLeft")
    expect(rows).to_have_count(1)
    tree.press("ArrowRight")
    expect(rows).to_have_count(3)
    tree.press("ArrowDown")
    expect(details).to_contain_text("gen_ai.input.messages")
    whole = page.get_by_role("button", name="Whole")
    expect(whole).to_be_disabled()
    tree.press("+")
    expect(whole).to_be_enabled()
    tree.press("0")
    expect(whole).to_be_disabled()
    axis = page.locator(".axis").bounding_box()
    assert axis is not None
    middle = axis["y"] + axis["height"] / 2
    page.mouse.move(axis["x"] + axis["width"] * 0.4, middle)
    page.mouse.down()
    page.mouse.move(axis["x"] + axis["width"] * 0.6, middle)
    page.mouse.up()
    expect(whole).to_be_enabled()


def test_waterfall_renders_the_rows_in_view(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    traced.claimed(store, "r")
    traced.add(store, "r", *(traced.plain(str(n), f"step {n}", n, n + 1) for n in range(1, 5001)))
    page = open_page(link(server, namespace, "r", tab="waterfall"))
    expect(page.get_by_role("tabpanel")).to_contain_text("5,000 spans")
    assert page.get_by_role("treeitem").count() < 100
    page.get_by_role("tree").press("End")
    expect(page.get_by_role("treeitem", name="step 5000 ")).to_be_visible()
    assert page.get_by_role("treeitem").count() < 100


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(
    server: Server,
    open_page: Open,
    store: LightningStore,
    namespace: str,
    theme: str,
) -> None:
    traced.claimed(store, "r")
    traced.add(
        store,
        "r",
        call("a", [traced.SYSTEM, user("Hi")], {**assistant("Ho"), "reasoning": "Hm"}, 1),
        traced.failed("tool", 4),
    )
    page = open_page(link(server, namespace, "r"), color_scheme=theme)
    expect(page.locator(".turn")).to_have_count(1)
    for title in TABS:
        open_tab(page, title)
        expect(page.locator(".loading")).to_have_count(0)
        assert violations(page) == []
    open_tab(page, "Waterfall")
    page.get_by_role("treeitem").last.click()
    expect(page.get_by_role("region", name="Span")).to_be_visible()
    assert violations(page) == []
