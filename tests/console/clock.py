"""A page whose clock stands still, except for the time that a test lets pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from playwright.sync_api import Page

#: A call that begins in a step is answered at the end of the step, by the page's clock.
STEP_MS = 50

#: Counts the unary calls that are under way, and waits for them. The page gets an answer once it is here as a whole: what
#: it then does is done before anything else is asked of it.
CALLS = """
const fetched = window.fetch;
const waiting = [];
let calls = 0;
window.fetch = async (...request) => {
  calls += 1;
  try {
    const answer = await fetched(...request);
    const body = await answer.arrayBuffer();
    answer.arrayBuffer = async () => body;
    return answer;
  } finally {
    calls -= 1;
    if (!calls) waiting.splice(0).forEach((resolve) => resolve(true));
  }
};
window.answered = () => calls > 0 && new Promise((resolve) => waiting.push(resolve));
"""


def open_stopped(open_page: Callable[[str], Page], link: str) -> Page:
    """Open a link in a tab whose clock stands still, and let time pass until all is loaded that the page begins with.

    The clock stands still from the start: a page waits after each load in proportion to the time that the load took, and
    a load that real time had passed in would make it wait for longer.
    """
    # A page that asks for no times. The clock of the page that is open while it is installed begins in 1970.
    page = open_page(f"{link.partition('#')[0]}#/nothing")
    time = datetime.now(UTC)
    page.add_init_script(CALLS)
    page.clock.install(time=time - timedelta(hours=1))  # it can be stopped in its future alone
    page.clock.pause_at(time)
    page.reload()
    page.goto(link)
    let_pass(page, 750)
    assert page.locator(".connection").text_content() == "live"
    return page


def let_pass(page: Page, ms: int) -> None:
    """Let time pass for the page. However long its calls take, each of them takes at most one step of its time."""
    for _ in range(ms // STEP_MS):
        page.clock.run_for(STEP_MS)
        while page.evaluate("window.answered()"):
            pass
