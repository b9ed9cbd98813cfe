"""What a runner says and refuses before it claims anything."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
from typing import Any

import pytest
from lightningstore.client import LightningStore, Runner

from .fakes import RealServer

NOWHERE = "127.0.0.1:1"


def narrow(task: Any) -> None:
    del task


async def narrow_coroutine(task: Any) -> None:
    del task


def wide(task: Any, resources: Any, tracer: Any, context: Any, more: Any) -> None:
    del task, resources, tracer, context, more


def keywords(task: Any, resources: Any, *, tracer: Any, context: Any) -> None:
    del task, resources, tracer, context


class Narrow:
    def __call__(self, task: Any) -> None:
        del task


@pytest.mark.parametrize("agent", [narrow, narrow_coroutine, wide, keywords, Narrow()])
def test_a_function_that_cannot_be_called_is_refused_at_construction(agent: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Runner(NOWHERE, agent)
    assert "(input, resources, tracer, context)" in str(caught.value)
    assert "its signature is (" in str(caught.value)


def test_what_is_not_a_function_is_refused_at_construction() -> None:
    for agent in (None, "agent", 3):
        with pytest.raises(TypeError, match=r"\(input, resources, tracer, context\)"):
            Runner(NOWHERE, agent)  # type: ignore[arg-type]


def test_a_generator_function_is_refused_at_construction() -> None:
    def generator(*_: Any) -> Any:
        yield 1

    async def async_generator(*_: Any) -> Any:
        yield 1

    class Generator:
        def __call__(self, *_: Any) -> Any:
            yield 1

    for agent in (generator, async_generator, Generator()):
        with pytest.raises(TypeError, match="generator function: return the reward"):
            Runner(NOWHERE, agent)


def test_what_can_be_called_with_four_arguments_is_taken() -> None:
    class Agent:
        def method(self, task: Any, resources: Any, tracer: Any, context: Any) -> None: ...

    def more(task: Any, resources: Any, tracer: Any, context: Any, extra: int = 1) -> None: ...

    for agent in (
        Agent().method,
        more,
        functools.partial(wide, more=1),
        functools.partial(wide, 0),
        lambda *arguments: None,
        print,
        max,  # a builtin that does not tell its signature
    ):
        Runner(NOWHERE, agent)


def test_run_in_a_notebook_names_arun() -> None:
    runner = Runner(NOWHERE, print)

    async def cell() -> None:
        runner.run()

    with pytest.raises(RuntimeError, match=r"await runner\.arun\(\)"):
        asyncio.run(cell())


STARTED = """
import sys
from lightningstore.client import Runner
{setup}
Runner(sys.argv[1], lambda *_: None, worker_id="w-1", concurrency=4, modes=["val", None], max_rollouts={most}).run()
"""


def start(address: str, setup: str = "", most: int | None = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", STARTED.format(setup=setup, most=most), address],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("namespace", ["default", "run-1"])
def test_the_first_line_says_what_the_runner_does(shared: RealServer, namespace: str) -> None:
    named = 'import os; os.environ["LIGHTNINGSTORE_NAMESPACE"] = "run-1"'
    assert start(shared.address, named if namespace == "run-1" else "") == (
        f"runner w-1: claiming from {shared.address}, namespace {namespace}, concurrency 4, "
        "modes val, none, up to 0 rollouts\n"
    )


def test_the_first_line_goes_to_logging_where_that_is_set_up(shared: RealServer) -> None:
    quiet = "import logging; logging.basicConfig(level=logging.WARNING)"
    assert start(shared.address, quiet) == ""
    loud = 'import logging; logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")'
    assert start(shared.address, loud).startswith("lightningstore.client.runner runner w-1: ")


def test_a_client_knows_its_address() -> None:
    with LightningStore("https://127.0.0.1:1", namespace="run-1") as store:
        assert store.address == store.with_timeout(1).address == NOWHERE
        assert store.namespace == store.with_timeout(1).namespace == "run-1"
    with LightningStore("https://127.0.0.1:1") as store:
        assert store.namespace == ""
