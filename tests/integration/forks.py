"""Commands as processes that are forked from one which has imported everything: a tenth of what an interpreter costs.

They have arguments, a folder, an environment, files and an exit code of their own, as any process has. What is shown of
the program's start itself runs it as it is installed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[2]
LARGEST_REQUEST = 1 << 20


def run_forked(
    arguments: list[str],
    folder: Path,
    stdin: bytes | None,
    environment: dict[str, str],
    seconds: float,
) -> tuple[int, str, str]:
    """Run a command to its end; returns exit code, stdout and stderr. Raises TimeoutError, and kills it then."""
    request = json.dumps([arguments, str(folder), environment]).encode()
    ours, its = socket.socketpair()
    with (
        ours,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(stdin or b"")
        given.seek(0)
        with its:
            files = [file.fileno() for file in (its, given, out, errors)]
            socket.send_fds(_parent(), [request], files)
        ours.settimeout(seconds)
        with ours.makefile("r") as answer:
            process = int(answer.readline())
            try:
                code = int(answer.readline())
            except TimeoutError:
                os.kill(process, signal.SIGKILL)
                raise
        return code, _text(out), _text(errors)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _parent() -> socket.socket:
    """Start the process that others are forked from; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.integration.forks", str(its.fileno())]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request until there are no more."""
    from lightningstore.service.cli import entry, main

    os.environ["GRPC_VERBOSITY"] = "NONE"  # as `main` sets it, before gRPC is imported
    for command in main.ENTRIES.values():
        import_module(f"lightningstore.service.cli.{command.module}")
    gc.freeze()
    ended, signals = socket.socketpair()
    for end in (ended, signals):
        end.setblocking(False)
    signal.set_wakeup_fd(signals.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests, ended], [], [])
        if ended in ready:
            ended.recv(4096)
            for process, answer in list(running.items()):
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    _send(answer, os.waitstatus_to_exitcode(status))
                    os.close(running.pop(process))
        if requests not in ready:
            continue
        request, files, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
        if not request:
            return
        answer, *standard = files
        if (process := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (requests, ended, signals):
                other.close()
            for other in (answer, *running.values()):
                os.close(other)
            _run(json.loads(request), standard, entry.main)
        running[process] = answer
        _send(answer, process)
        for file in standard:
            os.close(file)


def _send(answer: int, number: int) -> None:
    with suppress(OSError):  # Whoever waited has given up.
        os.write(answer, b"%d\n" % number)


def _run(request: list, files: list[int], main) -> NoReturn:
    """Become the command."""
    arguments, folder, environment = request
    streams = (sys.stdin, sys.stdout, sys.stderr)
    for number, (file, stream) in enumerate(zip(files, streams, strict=True)):
        os.dup2(file, number)
        mode = "w" if number else "r"
        again = os.fdopen(number, mode, encoding=stream.encoding, errors=stream.errors)
        setattr(sys, ("stdin", "stdout", "stderr")[number], again)
    for file in files:
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["lightningstore", *arguments]
    code: object = 70
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
