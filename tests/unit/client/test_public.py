"""The face of the package: what it exports, and that the two clients are twins."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import lightningstore.client as package
import pytest
from lightningstore.client import AsyncLightningStore, LightningStore
from lightningstore.client._transport.methods import METHODS

FOLDER = Path(inspect.getfile(package)).parent
SOURCES = sorted(FOLDER.rglob("*.py"))
SAME_CALLS_ELSEWHERE = {"enqueue_rollout": "enqueue_rollouts", "iter_rollouts": "list_rollouts"}


def public(cls: type) -> dict[str, Any]:
    return {
        name: getattr(cls, name)
        for name in dir(cls)
        if not name.startswith("_") and callable(getattr(cls, name))
    }


def test_all_names_are_there_and_all_that_is_there_is_named() -> None:
    assert len(package.__all__) == len(set(package.__all__))
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname or alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(imported) == set(package.__all__)
    for name, module in imported.items():
        assert getattr(package, name) is getattr(import_module(module), name)


def test_modules_are_imported_when_they_are_first_used() -> None:
    def imported(statement: str) -> set[str]:
        program = f"{statement}; import sys; print(*sys.modules)"
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, text=True
        )
        return set(ran.stdout.split())

    assert "grpc" not in imported("import lightningstore.client")
    store = imported("from lightningstore.client import LightningStore")
    assert "lightningstore.client._sync.store" in store
    assert "opentelemetry.sdk" not in store
    assert "opentelemetry.sdk" in imported(
        "import lightningstore.client as c; c.exporter.SpanExporter"
    )
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        package.Nope  # noqa: B018


def test_each_method_of_the_contract_is_a_method_of_both_clients() -> None:
    for method in METHODS.values():
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        assert callable(getattr(AsyncLightningStore, name)), name
        assert callable(getattr(LightningStore, name)), name


def test_the_clients_are_twins() -> None:
    blocking, asyncio = public(LightningStore), public(AsyncLightningStore)
    assert set(blocking) == set(asyncio)
    for name, method in asyncio.items():
        mine, other = inspect.signature(blocking[name]), inspect.signature(method)
        assert [(p.name, p.default, p.kind) for p in mine.parameters.values()] == [
            (p.name, p.default, p.kind) for p in other.parameters.values()
        ], name
        for parameter in mine.parameters.values():
            annotation = str(other.parameters[parameter.name].annotation)
            annotation = re.sub(r"(Iterable\[.+\]) \| Async\1", r"\1", annotation)
            annotation = annotation.replace("Async", "")
            assert str(parameter.annotation) == annotation, name


def test_the_twins_are_described_alike() -> None:
    def text(method: Any) -> str:
        words = inspect.getdoc(method) or ""
        return re.sub(r"\b(await |async (?=for|with))", "", words)

    skipped = {"over"}
    for name, method in public(AsyncLightningStore).items():
        assert text(method), name
        if name not in skipped:
            assert text(method) == text(getattr(LightningStore, name)), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_files_fit_the_eye(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 500
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_the_embedded_store_knows_the_server(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    knows = [name for name in names if name.startswith("lightningstore.service")]
    assert not knows or path == FOLDER / "embedded.py"
    top = [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert not [name for name in top if name.startswith("lightningstore.service")]


def test_the_package_is_typed_and_its_root_is_a_namespace() -> None:
    assert (FOLDER / "py.typed").exists()
    assert not (FOLDER.parent / "__init__.py").exists()
