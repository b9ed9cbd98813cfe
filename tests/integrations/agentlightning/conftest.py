"""Servers of both back ends for the adapter of agentlightning, which `make agl-test` runs in `.venv-agl`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

INSTALLED = importlib.util.find_spec("agentlightning") is not None
# The main environment has no agentlightning, and its pytest passes these tests by.
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

#: Variables of programs that need no server of language models, and import agentlightning in half the time without it.
LIGHT = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parent / "light"), os.environ.get("PYTHONPATH")))
    )
}
COMMAND = str(Path(sys.executable).parent / "lightningstore")
# Nothing is fetched and nothing reported: prices of models, traces of agents.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", AGENTOPS_API_KEY="", OTEL_SERVICE_NAME="agl-test"
)
for name in [name for name in os.environ if name.startswith(("LIGHTNINGSTORE_", "AGL_"))]:
    del os.environ[name]

if INSTALLED:
    with warnings.catch_warnings():
        # What it imports warns of itself: litellm of its use of pydantic, for instance.
        warnings.simplefilter("ignore")
        importlib.import_module("agentlightning")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Run `lightningstore serve` in a folder, on a free port unless told otherwise; gives its address."""
    with subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--http-port", "0", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert " on " in line, "the server did not start"
            yield line.partition(" on ")[2].partition(",")[0]
        finally:
            process.terminate()
            assert process.wait(20) == 0


@pytest.fixture(scope="session", params=["memory", "sqlite"])
def address(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """The address of a server that the tests of a back end share."""
    with serving(tmp_path_factory.mktemp("store"), "--backend", request.param) as address:
        yield address


#: For tests of processes that import agentlightning, which takes each more than ten seconds, and not of what is stored.
ONE_BACK_END = pytest.mark.parametrize("address", ["sqlite"], indirect=True)


@pytest_asyncio.fixture
async def store(address: str) -> Any:
    """An adapter with a connection of its own, and the server's queue empty."""
    from lightningstore.integrations.agentlightning import GrpcLightningStore

    store = GrpcLightningStore(address)
    while await store.dequeue_many_rollouts(limit=1000):
        pass
    yield store
    await store.close()
