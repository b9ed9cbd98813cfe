"""What keeps the code small enough to read in an afternoon, and its parts together."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from lightningstore.service.rpc.handlers import SERVICE
from lightningstore.service.rpc.status import CODES
from lightningstore.v1.error_reason_pb2 import ErrorReason

from tests.calls import snake_case

ROOT = Path(__file__).parents[2]
FOLDERS = ("service", "client", "tests", "benchmarks", "examples")
LINES_OF_A_FILE = 500
LINES_OF_A_FUNCTION = 60


def sources() -> list[Path]:
    return sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_OF_A_FILE
    assert [f for f in functions(path) if f[1] > LINES_OF_A_FUNCTION] == []
    assert not re.search(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", text)


def test_functions_stay_as_short_as_they_are() -> None:
    folders = ("service", "client/python/lightningstore/client")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sizes = sorted(lines for path in paths for _, lines in functions(path))
    median, p90, p99 = (sizes[int(len(sizes) * share)] for share in (0.5, 0.9, 0.99))
    assert (median <= 6, p90 <= 20, p99 <= 32) == (True, True, True), (median, p90, p99)


def test_namespace_package_has_no_init() -> None:
    roots = ("generated/python", "service", "client/python")
    for root in roots:
        assert (ROOT / root / "lightningstore").is_dir()
        assert not (ROOT / root / "lightningstore" / "__init__.py").exists()


def test_modules_of_the_rust_client_have_no_cycle() -> None:
    folder = ROOT / "client/rust/src"
    uses = {
        path.stem: set(re.findall(r"\bcrate::(\w+)", path.read_text())) - {path.stem}
        for path in folder.glob("*.rs")
        if path.stem != "lib"
    }
    assert uses["task"] >= {"execution"}
    TopologicalSorter(uses).prepare()


def distribution(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lightningstore" else parts[0]


def private_imports(path: Path, own: str) -> Iterator[str]:
    """Yield the imports of names with an underscore from another distribution than its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            elsewhere = parts[0] == "lightningstore" and distribution(name) != own
            if elsewhere and any(part.startswith("_") for part in parts):
                yield f"{path.relative_to(ROOT)}: {name}"


def test_no_distribution_imports_private_names_of_another() -> None:
    homes = {
        "lightningstore.service": "service",
        "lightningstore.client": "client/python/lightningstore/client",
        "lightningstore.integrations": "client/python/lightningstore/integrations",
        "conformance": "client/python/conformance",
        "benchmarks": "benchmarks",
        "examples": "examples",
    }
    assert [
        name
        for own, folder in homes.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in private_imports(path, own)
    ] == []


@pytest.mark.parametrize("back_end", ["sqlite", "postgres"])
def test_every_statement_is_used(back_end: str) -> None:
    folder = ROOT / "service/lightningstore/service/storage" / back_end
    texts = "".join(path.read_text() for path in sorted(folder.glob("*.sql")))
    named = re.findall(r"^-- name: (\w+)$", texts, re.MULTILINE)
    code = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    assert [name for name in named if not re.search(f"[\"']{name}[\"']", code)] == []
    assert len(named) == len(set(named))


def test_each_kind_of_id_is_made_in_one_place() -> None:
    code = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    prefixes = re.findall(r"\bnew_id\(\"([^\"]+)", code)
    assert sorted(prefixes) == ["at-", "de-", "ro-", "rs-"]


def test_every_error_reason_has_a_code_and_is_documented() -> None:
    numbers = {number for number in ErrorReason.values() if number}
    assert set(CODES) == numbers
    page = (ROOT / "docs/errors.md").read_text()
    words = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]
    assert [word for word in words if word not in page] == []


def test_errors_end_calls_in_one_place() -> None:
    package = ROOT / "service/lightningstore/service"
    found = [p for p in package.rglob("*.py") if "AbortError" in p.read_text()]
    # The second stands for gRPC where a call does not arrive by it.
    places = sorted(str(p.relative_to(package)) for p in found)
    assert places == ["rpc/calls.py", "rpc/dispatch.py"]


def test_every_call_is_in_the_contract_suite() -> None:
    suite = "".join(p.read_text() for p in (ROOT / "tests/contract").glob("*.py"))
    calls = [snake_case(method.name) for method in SERVICE.methods]
    assert [call for call in calls if f".{call}(" not in suite] == []


def test_a_call_has_no_places_but_those_that_contributing_names() -> None:
    """Shown by GetWorker, which no other code of client and server uses."""
    code = ("service/lightningstore/service", "client/python/lightningstore/client")
    called = re.compile(r"\b(GetWorker|get_worker)\b")
    places = {
        str(path.relative_to(ROOT))
        for folder in code
        for path in (ROOT / folder).rglob("*.py")
        if "_sync" not in path.parts and called.search(path.read_text())
    }
    assert len(places) == 5  # The sixth is its test.
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## How to add a")[1]
    named = set(re.findall(r"`([^`\s]*/[^`\s]*)`", section))
    assert [p for p in places if not any(name.rstrip("/") in p for name in named)] == []
    assert "tests/contract" in named


def test_architecture_names_every_module_of_the_server() -> None:
    package = ROOT / "service/lightningstore/service"
    page = (ROOT / "docs/architecture.md").read_text()
    modules = [p for p in package.rglob("*.py") if p.name != "__init__.py"]
    assert len(modules) > 80
    named = [f"`{p.relative_to(package)}`" for p in modules]
    assert [name for name in named if name not in page] == []


@pytest.mark.parametrize("record", ["workers", "resources", "requests"])
def test_stored_record_touches_at_most_six_places(record: str) -> None:
    package = ROOT / "service/lightningstore/service"
    uses = re.compile(rf"\b(changes|snapshot)\.{record}\b|^    {record}: ", re.MULTILINE)
    places = set()
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        if not name.startswith("storage/testing/") and uses.search(path.read_text()):
            folder = re.match(r"storage/\w+(?=/)", name)
            places.add(folder[0] if folder else name)
    assert {"storage/base.py", "storage/sqlite", "storage/postgres"} <= places
    assert len(places) <= 6, sorted(places)


def test_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = list((ROOT / "docs").rglob("*.md")) + list((ROOT / "client").glob("*/README.md"))
    named = [str(p.relative_to(ROOT)) for p in pages]
    assert [name for name in named if f"]({name})" not in readme] == []


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_resolve() -> None:
    broken = []
    for page in (path for path in texts() if path.suffix == ".md"):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", prose):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


#: Phrases that CONTRIBUTING.md replaces, as regular expressions, and what to write instead.
BANNED = {
    r"\bfor ever\b": "without end, unlimited",
    r"\bby and by\b": "gradually",
    r"\b[Ss]o many\b": "a number of …, or the name of the parameter",
    r"\b[Ww]hat is no\b": "invalid",
    r"\b(is|are) no error\b": "is not an error, succeeds",
    r"(?<![-\w'\"{])[Nn]obody\b(?!['\"])": "no caller, no one, or the passive",
    r"\b(is|are|was|were|be|been|being) told\b(?! apart)": "is notified, is requested, receives",
    r"\b(go|goes|going|went) down\b": "shut down, end",
    r"\bheard of\b|\bsigns? of life\b": "last seen, heartbeat, span",
    r"\b(late|final|own|runner's) word\b": "outcome, status report",
    r"\bwatchdog's verdict\b": "expiry",
    r"\bmends?\b": "repair; retryable",
    r"\blets? go of\b": "evict, drop, release",
    r"\b(bring|brings|brought) back\b": "load, restore",
    r"\btakes? its place\b": "replaces",
    r"\bread again\b": "loaded again, reloaded",
    r"\b(Least|Most|Longest) (rollouts|spans|items|bytes|attempts|workers|streams|open|time|silence)\b": (
        "minimum, maximum"
    ),
    r"(?<!those )(?<!callers )(?<!people )\b[Ww]ho (reads|waits|watches|asks|claims)\b": "name the subject",
}
#: Text files by the end of their name, and folders that tools create.
TEXTS = (
    ["py", "md", "proto", "sql", "mk", "toml", "service", "go", "ts", "java", "rs", "cc", "h"],
    {"Makefile", "Dockerfile"},
)
CREATED = {"node_modules", "target", "build", "dist", "gen", "generated"}


def test_no_constructor_says_only_that_it_takes_its_arguments() -> None:
    empty = re.compile(r"(Take|Start|Begin|Keep|Hold)\b[^.;:]{0,40}\.")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name == "__init__"
        and empty.fullmatch(ast.get_docstring(node) or "")
    ]
    assert found == []


def texts() -> Iterator[Path]:
    """Yield the text files that people write, without this one."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in CREATED and not f.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if (path.suffix[1:] in TEXTS[0] or name in TEXTS[1]) and path != Path(__file__):
                yield path


def test_texts_are_plain_english() -> None:
    banned = [(re.compile(phrase), better) for phrase, better in BANNED.items()]
    found = []
    for path in texts():
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        found += [
            f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, say {better}"
            for phrase, better in banned
            for match in phrase.finditer(text)
        ]
    assert found == []
