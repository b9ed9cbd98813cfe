"""The docstrings of the public names, from which an API reference can be built: their sections and their examples."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import enum
import functools
import importlib
import inspect
import pydoc
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightningstore.client as package
import pytest
from lightningstore.client import AsyncLightningStore, LightningStore
from lightningstore.client._transport.methods import SERVICE

from .fakes import RealServer

MODULES = [
    package,
    *(
        importlib.import_module(f"lightningstore.client.{path.stem}")
        for path in sorted(Path(inspect.getfile(package)).parent.glob("*.py"))
        if not path.stem.startswith("_")
    ),
]
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example):$", re.MULTILINE)
#: Types whose methods come from elsewhere, and names that the documentation of their modules covers.
FOREIGN = ("opentelemetry", "builtins", "enum", "typing", "google")
#: Calls that fail only as every call can fail: the class says how.
NEVER_NAMED = {"get_statistics", "get_server_info"}


class Named(NamedTuple):
    """Something with a docstring, and its name."""

    name: str
    value: Any
    is_property: bool = False


def public_names(module: Any) -> list[str]:
    named = getattr(module, "__all__", None)
    if named is not None:
        return list(named)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def classes_and_functions() -> Iterator[Named]:
    seen: set[int] = set()
    for module in MODULES:
        for name in public_names(module):
            value = getattr(module, name)
            described = inspect.isclass(value) or inspect.isroutine(value)
            ours = getattr(value, "__module__", "").startswith("lightningstore.client")
            if described and ours and id(value) not in seen:
                seen.add(id(value))
                yield Named(f"{module.__name__}.{name}", value)


def members(named: Named) -> Iterator[Named]:
    """Yield the public methods and properties of a class, inherited ones of ours too."""
    if not inspect.isclass(named.value):
        return
    for name in dir(named.value):
        value = inspect.getattr_static(named.value, name)
        home = next((c for c in named.value.__mro__ if name in vars(c)), object)
        is_enum = issubclass(named.value, enum.Enum) and isinstance(value, enum.Enum)
        if name.startswith("_") or is_enum or home.__module__.split(".")[0] in FOREIGN:
            continue
        if isinstance(value, property | functools.cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            yield Named(f"{named.name}.{name}", getter, is_property=True)
        elif inspect.isroutine(getattr(named.value, name)):
            yield Named(f"{named.name}.{name}", value)


ALL = list(classes_and_functions())
MEMBERS = [member for named in ALL for member in members(named)]


def sections(text: str) -> dict[str, str]:
    parts = SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def items(section: str) -> set[str]:
    """Return the names that a section describes: those at its indentation."""
    return set(re.findall(r"^ {4}\*{0,2}([\w.]+)(?:, [\w.]+)*: \S", section, re.MULTILINE))


def function_of(value: Any) -> Any:
    return getattr(value, "__func__", value)


def ids(named: list[Named]) -> list[str]:
    return [one.name.removeprefix("lightningstore.client").lstrip(".") for one in named]


def test_there_is_something_to_check() -> None:
    assert len(ALL) > 80
    assert len(MEMBERS) > 200


@pytest.mark.parametrize("named", [*ALL, *MEMBERS], ids=ids([*ALL, *MEMBERS]))
def test_everything_public_has_a_docstring_of_its_own(named: Named) -> None:
    own = function_of(named.value).__doc__
    assert own, named.name
    first = own.strip().splitlines()[0]
    assert first.endswith("."), first
    assert first[0] not in "`" + "abcdefghijklmnopqrstuvwxyz"
    assert not re.search(r"^\s*(Take|It|Its|They)\b", first), first


FUNCTIONS = [n for n in [*ALL, *MEMBERS] if not inspect.isclass(n.value) and not n.is_property]


@pytest.mark.parametrize("named", FUNCTIONS, ids=ids(FUNCTIONS))
def test_parameters_and_results_of_functions_are_described(named: Named) -> None:
    function = function_of(named.value)
    described = sections(inspect.getdoc(function) or "")
    signature = inspect.signature(function)
    parameters = set(signature.parameters) - {"self", "cls"}
    assert items(described.get("Args", "")) == parameters
    result = str(signature.return_annotation)
    if result not in ("None", "Self"):
        generates = inspect.isgeneratorfunction(inspect.unwrap(function))
        generates = generates or inspect.isasyncgenfunction(inspect.unwrap(function))
        assert ("Yields" if generates else "Returns") in described


CLASSES = [named for named in ALL if inspect.isclass(named.value)]


def constructor_parameters(kind: type) -> set[str]:
    if issubclass(kind, (enum.Enum, tuple, bytes)) or getattr(kind, "_is_protocol", False):
        return set()
    if issubclass(kind, Exception | BaseException) and "__init__" not in vars(kind):
        return set()  # those of the error tree share a constructor
    if not inspect.isfunction(kind.__init__) or kind.__init__.__module__.split(".")[0] in FOREIGN:
        return set()
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def assigned_attributes(kind: type) -> set[str]:
    """Return the public attributes that a constructor sets, other than those of its views' message."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return {
        node.attr
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and not node.attr.startswith("_")
    }


@pytest.mark.parametrize("named", CLASSES, ids=ids(CLASSES))
def test_what_a_class_is_made_of_is_described(named: Named) -> None:
    kind: Any = named.value
    text = inspect.getdoc(kind) or ""
    described = sections(text)
    arguments, attributes = (items(described.get(name, "")) for name in ("Args", "Attributes"))
    assert arguments >= constructor_parameters(kind)
    assert attributes >= assigned_attributes(kind)
    if issubclass(kind, enum.Enum):
        assert attributes == set(kind.__members__)
    elif hasattr(kind, "_fields"):
        assert attributes == set(kind._fields)
    elif dataclasses.is_dataclass(kind):
        assert arguments == {field.name for field in dataclasses.fields(kind)}
    elif hasattr(kind, "__required_keys__"):
        assert attributes == set(kind.__annotations__)
    init = vars(kind).get("__init__")
    assert (
        init is None or dataclasses.is_dataclass(kind) or not init.__doc__
    )  # the class says it all


@pytest.mark.parametrize("client", [AsyncLightningStore, LightningStore])
def test_calls_say_what_they_fail_with(client: type) -> None:
    """By the contract every method but two can end with an error that has a reason."""
    for method in SERVICE.methods:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        if name not in NEVER_NAMED:
            raised = sections(inspect.getdoc(getattr(client, name)) or "").get("Raises", "")
            errors = [getattr(package, error, None) for error in items(raised)]
            assert any(
                inspect.isclass(e) and issubclass(e, package.LightningStoreError) for e in errors
            ), name


def test_errors_that_are_named_exist() -> None:
    for named in [*ALL, *MEMBERS]:
        for error in items(sections(inspect.getdoc(named.value) or "").get("Raises", "")):
            known = pydoc.locate(error) or pydoc.locate(f"lightningstore.client.{error}")
            assert inspect.isclass(known), f"{named.name}: {error}"
            assert issubclass(known, BaseException), f"{named.name}: {error}"


def test_constants_have_a_comment_or_are_named_by_their_module() -> None:
    for module in MODULES:
        source = inspect.getsource(module)
        for name in public_names(module):
            if name.isupper() and re.search(rf"^{name} = ", source, re.MULTILINE):
                block = re.search(
                    rf"^#: .*\n(?:#: .*\n|[A-Z_]+ = .*\n)*{name} = ", source, re.MULTILINE
                )
                assert block, f"{module.__name__}.{name}"


def test_a_reference_can_be_built() -> None:
    for module in MODULES:
        text = pydoc.render_doc(module, renderer=pydoc.plaintext)
        for name in public_names(module):
            assert name in text
    for named in ALL:
        assert pydoc.render_doc(named.value, renderer=pydoc.plaintext)


def examples() -> dict[str, tuple[str, bool]]:
    """Return the examples by the name of what they are of, and whether they are for the asyncio client."""
    found = {}
    for named in [*ALL, *MEMBERS, *(Named(m.__name__, m) for m in MODULES)]:
        text = sections(inspect.getdoc(named.value) or "").get("Example")
        if text is not None:
            found[named.name] = (
                textwrap.dedent(text.strip("\n")),
                "await " in text or "async " in text,
            )
    return found


EXAMPLES = examples()


def test_the_blocking_client_has_blocking_examples() -> None:
    of_blocking = [text for name, (text, _) in EXAMPLES.items() if ".LightningStore" in name]
    assert len(of_blocking) > 10
    assert not [text for text in of_blocking if "await" in text or "async" in text.lower()]
    assert (
        len([text for name, (text, _) in EXAMPLES.items() if ".Async" in name and "await" in text])
        > 10
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, shared: RealServer, tmp_path: Path, monkeypatch: Any) -> None:
    source, is_async = EXAMPLES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNINGSTORE_ADDRESS", shared.address)
    source = source.replace("127.0.0.1:4747", shared.address)
    names: dict[str, Any] = {key: getattr(package, key) for key in package.__all__}
    for module in MODULES:
        names |= {key: getattr(module, key) for key in public_names(module)}
    code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run() -> None:
        async with AsyncLightningStore(shared.address) as store:
            names["store"] = store
            await eval(code, names)

    if is_async:
        asyncio.run(run())
        return
    with LightningStore(shared.address) as store:
        store.cancel_rollouts(r.rollout_id for r in store.iter_rollouts(statuses=["queuing"]))
        names["store"] = store
        exec(code, names)
