"""Runs all scenarios in all languages on all back ends.

python -m tests.conformance.run [--languages go,rust] [--scenario full_life] [--write | --check]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tests.conformance import languages as known
from tests.conformance import table
from tests.conformance.driver import DriverError, ProcessDriver, Unsupported
from tests.conformance.languages import Language
from tests.conformance.play import Mismatch, Play
from tests.conformance.scenario import BACKENDS, Scenario, load
from tests.conformance.server import Server, Servers
from tests.conformance.values import ScenarioError

DRIVERS = known.ROOT / "build/conformance"


class Drivers:
    """Drivers by language and server, each started when it is first needed."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[tuple[str, str], ProcessDriver] = {}
        self._numbers = itertools.count()

    def get(self, language: str, address: str) -> ProcessDriver:
        """Return the driver of a language for a server."""
        key = (language, address)
        if key not in self._running:
            log = self._logs / f"{language}-{next(self._numbers)}.log"
            self._running[key] = ProcessDriver([str(DRIVERS / language), address], log)
        return self._running[key]

    def close(self, address: str | None = None) -> None:
        """End those of one server, or all. Raises DriverError if one does not end well."""
        faults = []
        for key in [key for key in self._running if address in (None, key[1])]:
            try:
                self._running.pop(key).close()
            except DriverError as error:
                faults.append(f"{key[0]}: {error}")
        if faults:
            raise DriverError("; ".join(faults))


class Suite:
    """All runs of all scenarios, and what came of them."""

    def __init__(self, chosen: Sequence[Language], drivers: Drivers) -> None:
        self._languages = chosen
        self._drivers = drivers
        self._numbers = itertools.count(1)
        #: What came of each run, by scenario and language.
        self.outcomes: dict[tuple[str, str], list[str]] = {}

    def run(self, scenarios: Sequence[Scenario], backend: str) -> None:
        """Run scenarios in all languages over a back end."""
        servers = Servers(backend)
        try:
            for scenario in sorted(scenarios, key=lambda s: (repr(s.server), s.name)):
                for place in range(len(self._languages)) if backend in scenario.backends else ():
                    self._run_one(scenario, servers, place)
        finally:
            with contextlib.suppress(DriverError):
                self._drivers.close()
            servers.close()

    def _cast(self, scenario: Scenario, place: int) -> dict[str, Language] | None:
        """Give each role a language: the first one has this place, others follow. None: it cannot."""
        count = len(self._languages)
        cast = {}
        for offset, role in enumerate(scenario.roles):
            order = [self._languages[(place + offset + more) % count] for more in range(count)]
            able = [one for one in order if not scenario.needs(role) & one.unsupported]
            if not able or (offset == 0 and able[0] is not order[0]):
                return None
            cast[role] = able[0]
        return cast

    def _run_one(self, scenario: Scenario, servers: Servers, place: int) -> None:
        cast = self._cast(scenario, place)
        language = self._languages[place].name
        since = time.monotonic()
        problem = self._play(scenario, servers, cast) if cast else ""
        outcome = table.FAILED if problem else table.OK if cast else table.LEFT_OUT
        self.outcomes.setdefault((scenario.name, language), []).append(outcome)
        others = "+".join(player.name for player in (cast or {}).values()) or language
        seconds = f"{time.monotonic() - since:.2f} s"
        why = f"\n    {problem}" if problem else ""
        print(
            f"{outcome} {servers.backend:6} {others:10} {scenario.name}  {seconds}{why}", flush=True
        )

    def _play(self, scenario: Scenario, servers: Servers, cast: dict[str, Language]) -> str:
        """Run a scenario once; return what went wrong."""
        server = servers.get(scenario.server)
        problem = ""
        word = f"{scenario.name}-{next(self._numbers)}"
        try:
            players = {
                role: self._drivers.get(player.name, server.address)
                for role, player in cast.items()
            }
            with server.namespace(word) if scenario.own_namespace else contextlib.nullcontext():
                Play(scenario, players, word, server, server.variables).run()
        except Unsupported as error:
            problem = f"languages.json allows no such gap: {error}"
        except (
            Mismatch,
            DriverError,
            ScenarioError,
            OSError,
            RuntimeError,
            grpc.RpcError,
        ) as error:
            problem = str(error)
        return self._end(scenario, servers, server, problem)

    def _end(self, scenario: Scenario, servers: Servers, server: Server, problem: str) -> str:
        """Put all in order for the next; return what went wrong, here or before."""
        try:
            # A driver may still be at what failed, a runner claim what the next enqueues.
            if problem or dict(scenario.server).get("fresh"):
                self._drivers.close(server.address)
        except DriverError as error:
            problem = problem or str(error)
        try:
            servers.give_back(scenario.server, server)
        except (grpc.RpcError, RuntimeError) as error:
            problem = problem or f"the server is in no good state: {error}; {server.log()[-2000:]}"
            servers.forget(scenario.server)
        return problem


def play_all(
    chosen: Sequence[Language], scenarios: Sequence[Scenario], backends: Sequence[str]
) -> dict[tuple[str, str], str]:
    """Return what came of each scenario in each language, over all back ends.

    The back ends are tried side by side: most of the time is spent on waiting.
    """

    def over(backend: str) -> Suite:
        with tempfile.TemporaryDirectory() as logs:
            suite = Suite(chosen, Drivers(Path(logs)))
            suite.run(scenarios, backend)
        return suite

    found: dict[tuple[str, str], list[str]] = {}
    with ThreadPoolExecutor() as pool:
        for suite in pool.map(over, backends):
            for key, outcomes in suite.outcomes.items():
                found.setdefault(key, []).extend(outcomes)
    return {key: table.join(outcomes) for key, outcomes in found.items()}


def choose(names: str, required: str) -> Iterator[Language]:
    """Return the languages to run: those asked for, else those with a driver. Exits where one lacks."""
    languages = known.load()
    wanted = known.wanted(names, languages) if names else list(languages)
    must = set(known.wanted(required, languages)) | set(wanted if names else ())
    for name in wanted:
        if (DRIVERS / name).exists():
            yield languages[name]
        elif name in must:
            sys.exit(f"build/conformance/{name} is missing: make {name}-driver")
        else:
            print(f"left out: {languages[name].title} (no build/conformance/{name})")


def compare_page(scenarios: Sequence[Scenario], cells: table.Cells, *, write: bool) -> bool:
    """Write the table into the page, or tell whether it is there; other languages stay as they are."""
    languages = list(known.load().values())
    page = table.parse(table.current(), languages)
    made = table.render(scenarios, languages, {**page, **cells})
    if write:
        table.write(made)
    return made == table.current()


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--languages", default="", help="names with commas; unset: all with a driver"
    )
    parser.add_argument("--require", default="", help="all, or names that must have a driver")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="names with commas")
    parser.add_argument("--scenario", default="", help="names with commas; unset: all")
    parser.add_argument("--check", action="store_true", help="the table of docs/clients.md fits")
    parser.add_argument("--write", action="store_true", help="write the table of docs/clients.md")
    return parser.parse_args()


def main() -> None:
    """Run; exit with 1 on any failure."""
    options = arguments()
    everything = load()
    names = set(options.scenario.split(",")) if options.scenario else {s.name for s in everything}
    unknown = names - {scenario.name for scenario in everything}
    if unknown:
        sys.exit(f"unknown scenario: {', '.join(sorted(unknown))}")
    scenarios = [scenario for scenario in everything if scenario.name in names]
    chosen = list(choose(options.languages, options.require))
    cells = play_all(chosen, scenarios, options.backends.split(","))
    print("\n" + table.render(scenarios, chosen, cells))
    failed = [key for key, cell in cells.items() if cell == table.FAILED]
    if failed:
        sys.exit(f"{len(failed)} of {len(cells)} failed")
    if (options.check or options.write) and not compare_page(
        everything, cells, write=options.write
    ):
        sys.exit("the table of docs/clients.md is out of date: make conformance-table")


if __name__ == "__main__":
    main()
