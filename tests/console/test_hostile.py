"""A trace whose texts try to be more than text."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from lightningstore.client import Failure, LightningStore
from lightningstore.v1.span_pb2 import SpanBatch
from playwright.sync_api import Page, expect

from tests.console import traced
from tests.console.conftest import Server
from tests.traces import any_value

Open = Callable[..., Page]
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
#: Control characters, and characters that turn the direction of what follows.
TURNED = "\x00\x1b[31m\u202eevil\u2066"
HOSTILE = f"{SCRIPT} javascript:window.ran=3 {TURNED} ${{window.ran=4}} {{{{7*7}}}}"
PICTURES = [
    "javascript:window.ran=5",
    "https://attacker.test/pixel.png",
    "//attacker.test/pixel.png",
    "data:text/html,<script>window.ran=6</script>",
    "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9IndpbmRvdy5yYW49NyIvPg==",
]


def fill(store: LightningStore) -> None:
    """Put hostile text where text may be."""
    rollout = {
        "input": HOSTILE,
        "rollout_id": HOSTILE,
        "group_id": HOSTILE,
        "labels": {"a": HOSTILE[:63].replace("\x00", "")},
    }
    rollout["rollout_id"] = rollout["group_id"] = HOSTILE.replace("\x00", "")
    store.enqueue_rollouts([rollout])
    store.start_attempt(str(rollout["rollout_id"]), worker_id=SCRIPT)
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in PICTURES]
    asked = [
        {"role": SCRIPT, "name": HOSTILE, "content": HOSTILE},
        {"role": "user", "content": parts},
        {"role": "user", "content": "long " * 210_000},
        {
            "role": "tool",
            "tool_call_id": HOSTILE,
            "name": HOSTILE,
            "content": json.dumps({HOSTILE: HOSTILE}),
        },
    ]
    function = {"name": HOSTILE, "arguments": HOSTILE}
    answer = {
        "role": "assistant",
        "reasoning": HOSTILE,
        "content": HOSTILE,
        "tool_calls": [{"function": function}],
    }
    span = traced.call(
        "a", asked, answer, 1, **{HOSTILE: HOSTILE, "agent.name": SCRIPT, "__proto__": HOSTILE}
    )
    span.name = HOSTILE
    span.status.message = HOSTILE
    span.status.code = 2
    for name in ("exception", HOSTILE):
        event = span.events.add(name=name)
        for key in ("exception.type", "exception.message", "exception.stacktrace", HOSTILE):
            event.attributes.add(key=key).value.CopyFrom(any_value(HOSTILE))
    link = span.links.add(trace_id=span.trace_id, span_id=span.span_id)
    link.attributes.add(key=HOSTILE).value.CopyFrom(any_value(HOSTILE))
    batch = SpanBatch(rollout_id=str(rollout["rollout_id"]), attempt_id="latest", spans=[span])
    batch.resource.attributes.add(key=HOSTILE).value.CopyFrom(any_value(HOSTILE))
    batch.scope.name = HOSTILE
    store.add_spans(batch)
    failure = Failure(SCRIPT, HOSTILE)
    store.update_attempt(
        str(rollout["rollout_id"]), "latest", status="failed", failure=failure, scores={SCRIPT: 1}
    )


def test_hostile_trace_is_shown_as_text(
    server: Server, open_page: Open, store: LightningStore, namespace: str
) -> None:
    fill(store)
    page = open_page(f"{server.link}/#/rollouts?namespace={namespace}")
    open_page.allow("404")  # type: ignore[attr-defined]  # the group is a label alone
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.locator("tbody a").first.click()
    panel = page.get_by_role("tabpanel")
    expect(panel.locator(".turn")).to_have_count(1)
    expect(panel).to_contain_text(SCRIPT)
    expect(panel).to_contain_text("\u2400\u241b[31m⟨U+202E⟩evil⟨U+2066⟩")
    # One picture may be followed by hand, the others are text.
    expect(panel.locator("img")).to_have_count(0)
    links = panel.locator("article a")
    expect(links).to_have_count(1)
    expect(links).to_have_attribute("href", "https://attacker.test/pixel.png")
    page.get_by_role("button", name="Show all 1,050,000 characters").click()
    expect(page.locator("article .said").filter(has_text="long").last).to_be_visible()
    for title in ("Waterfall", "Tokens", "Rewards and scores", "Raw JSON"):
        page.get_by_role("tab", name=title).click()
        expect(page.locator(".loading")).to_have_count(0)
        if title == "Waterfall":
            page.get_by_role("treeitem").click()
            details = page.get_by_role("region", name="Span")
            expect(details.locator("dd pre").filter(has_text=SCRIPT).first).to_be_visible()
            expect(details.locator(".exception")).to_contain_text(SCRIPT)
        is_harmless(page)
    page.locator(".facts a.id").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Group <script>")
    expect(page.locator(".member .message")).to_contain_text(SCRIPT)
    is_harmless(page)


def is_harmless(page: Page) -> None:
    """No script has run, and nothing was made of a text."""
    assert page.evaluate("window.ran") is None
    assert page.locator("main script, main iframe, main img[src=x], main svg").count() == 0
    assert page.evaluate("[...document.links].every(a => /^https?:$/.test(a.protocol))")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
