"""How commands connect to a server: the options that all of them have, and calls that carry the token."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    # At run time it is imported where it is used: grpc takes half of the time that a command takes.
    import grpc
    from google.protobuf.message import Message
    from lightningstore.client import LightningStore

#: Seconds for a call that answers at once, and for one that streams.
CALL_SECONDS = 10.0
STREAM_SECONDS = 600.0
HEALTH_SECONDS = 3.0
#: Seconds for the call of a completion, and number of ids that one offers.
COMPLETION_SECONDS = 0.8
MOST = 100
#: Seconds for a call that is repeated on a lost connection.
REPEATED_SECONDS = 60.0
#: Number of tries of a call whose namespace moves, and seconds between two: longer than a lease.
MOVE_TRIES = 20
MOVE_DELAY = 0.5
_NOT_OWNER = b"ERROR_REASON_NOT_OWNER"
_ENUM = re.compile(r"\b(?:ROLLOUT|ATTEMPT|WORKER)_(?:STATUS|MODE)_([A-Z_]+)")
_SERVICE = "lightningstore.v1.LightningStoreService"
#: Trailer of every error of a server; errors of a connection lack it.
_DETAILS_KEY = "grpc-status-details-bin"
#: Other services, by the module of their messages.
_SERVICES = {
    "cluster_pb2": "lightningstore.v1.ClusterService",
    "namespace_pb2": "lightningstore.v1.NamespaceService",
}
_CHANNEL = [
    # A server's limits may be set higher than a client's.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An http_proxy of the environment is meant for the web. The clients ignore it too.
    ("grpc.enable_http_proxy", 0),
]


#: Names of these options as parameters.
NAMES = ("address", "namespace", "token", "tls_ca", "tls_cert", "tls_key", "allow_insecure_token")


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the connection out of the parameters of a command."""
    found = {name: given.pop(name, None) for name in NAMES}
    found["allow_insecure_token"] = bool(found["allow_insecure_token"])
    return found


class Connection:
    """A channel to a server, and its calls."""

    def __init__(self, given: Mapping[str, Any], seconds: float = CALL_SECONDS) -> None:
        """Take the options, as `take` returns them, and the seconds of a call. Raises click.UsageError for invalid ones."""
        from lightningstore.client.connection import endpoint  # noqa: PLC0415
        from lightningstore.client.namespaces import DEFAULT_NAMESPACE, NAMESPACE_KEY  # noqa: PLC0415

        try:
            where = endpoint(**given)
            self._channel: grpc.Channel = where.blocking_channel(_CHANNEL)
        except (ValueError, OSError) as error:
            text = error_text(error).replace("allow_insecure_token=True", "--allow-insecure-token")
            raise click.UsageError(text) from None
        self.address = where.address
        self._metadata = where.metadata
        #: The namespace of its calls; "" for the default one.
        self.namespace = dict(where.metadata).get(NAMESPACE_KEY, "")
        self._seconds = seconds
        self._is_checked = self.namespace in ("", DEFAULT_NAMESPACE)

    def call(self, request: Message, seconds: float | None = None) -> Any:
        """Return the answer to a request; which call it is, its name says.

        It is repeated while the namespace moves from one server to another. Requests that write have a request id.
        """
        import grpc  # noqa: PLC0415

        path, serialize, deserialize = _shape(request)
        self._check_namespace(path)
        call = self._channel.unary_unary(path, serialize, deserialize)
        tries = MOVE_TRIES if self._seconds >= CALL_SECONDS else 1  # a completion must be quick
        while True:
            try:
                return call(request, timeout=seconds or self._seconds, metadata=self._metadata)
            except grpc.RpcError as error:
                tries -= 1
                if not tries or _NOT_OWNER not in _details_of(error):
                    raise
            time.sleep(MOVE_DELAY)

    def stream(self, request: Message) -> Iterator[Any]:
        """Yield the answers to a request."""
        path, serialize, deserialize = _shape(request)
        self._check_namespace(path)
        call = self._channel.unary_stream(path, serialize, deserialize)
        yield from call(request, timeout=STREAM_SECONDS, metadata=self._metadata)

    def _check_namespace(self, path: str) -> None:
        """Reject, before the first call in a namespace, a server that would carry it out in its only store."""
        from lightningstore.v1 import statistics_pb2  # noqa: PLC0415

        if self._is_checked or not path.startswith(f"/{_SERVICE}/"):
            return
        self._is_checked = True
        if not self.call(statistics_pb2.GetServerInfoRequest()).namespace:
            raise click.ClickException(
                f"the server at {self.address} is older than namespaces: it would ignore "
                f"{self.namespace!r} and use its only store"
            )

    def pages(self, request: Any, items: str) -> Iterator[Any]:
        """Yield what a list call returns on all its pages."""
        while True:
            page = self.call(request)
            yield from getattr(page, items)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def health(self) -> str:
        """Return the status of the server, or of the namespace if one is given, by the gRPC health protocol."""
        # Written out: messages of one field do not need another package.
        service = f"{_SERVICE}/{self.namespace}".encode() if self.namespace else b""
        request = bytes((10, len(service))) + service if service else b""
        call: Any = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check", lambda _: request, lambda answer: answer
        )
        answer = call(None, timeout=HEALTH_SECONDS)
        words = {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}
        return words.get(answer, "UNKNOWN")

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _shape(request: Message) -> tuple[str, Any, Any]:
    """Return the path of the call of a request, and how its messages are written and read."""
    kind = type(request)
    name = kind.__name__.removesuffix("Request")
    answer = getattr(sys.modules[kind.__module__], f"{name}Response")
    service = _SERVICES.get(kind.__module__.rpartition(".")[2], _SERVICE)
    return f"/{service}/{name}", kind.SerializeToString, answer.FromString


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(find: Callable[[Connection, str], Iterable[tuple[str, str]]]) -> Complete:
    """Return the completion of a parameter; `find` returns ids that may begin with a text, each with what it is.

    A server is asked within a second, and every error is silent: completion must not get in the way of typing.
    """

    def complete(
        context: click.Context,
        _parameter: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        given: dict[str, Any] = {}
        while context is not None:
            given = {**{k: v for k, v in context.params.items() if v is not None}, **given}
            context = context.parent  # type: ignore[assignment]
        try:
            server = Connection(take(given), seconds=COMPLETION_SECONDS)
            try:
                found = [
                    item for item in find(server, incomplete) if item[0].startswith(incomplete)
                ]
            finally:
                server.close()
        except Exception:
            return []
        return [CompletionItem(name, help=text) for name, text in found[:MOST]]

    return complete


def _namespaces(server: Connection, text: str) -> Iterator[tuple[str, str]]:
    from lightningstore.v1 import namespace_pb2  # noqa: PLC0415

    request = namespace_pb2.ListNamespacesRequest(name_contains=text, page_size=MOST)
    for one in server.call(request).namespaces:
        yield one.name, one.description


namespaces = completer(_namespaces)


def options() -> list[click.Parameter]:
    """Return the options of a command that calls a server."""
    return [
        click.Option(
            ["--address"],
            metavar="HOST:PORT",
            help="Server to call; https://HOST:PORT for TLS. "
            "[env var: LIGHTNINGSTORE_ADDRESS; default: 127.0.0.1:4747]",
        ),
        click.Option(
            ["--namespace"],
            metavar="NAME",
            shell_complete=namespaces,
            help="Namespace of the server. [env var: LIGHTNINGSTORE_NAMESPACE; default: default]",
        ),
        click.Option(
            ["--token"],
            metavar="TOKEN",
            help="Access token. The variable keeps it out of lists of processes. "
            "[env var: LIGHTNINGSTORE_TOKEN]",
        ),
        click.Option(
            ["--tls-ca"],
            metavar="FILE",
            help="CA certificates (PEM) used to verify the server. [env var: LIGHTNINGSTORE_TLS_CA]",
        ),
        click.Option(
            ["--tls-cert"],
            metavar="FILE",
            help="Client certificate (PEM) for mutual TLS. [env var: LIGHTNINGSTORE_TLS_CERT]",
        ),
        click.Option(
            ["--tls-key"],
            metavar="FILE",
            help="Private key (PEM) of --tls-cert. [env var: LIGHTNINGSTORE_TLS_KEY]",
        ),
        click.Option(
            ["--allow-insecure-token"],
            is_flag=True,
            default=None,
            help="Send the token without TLS. [env var: LIGHTNINGSTORE_ALLOW_INSECURE_TOKEN]",
        ),
    ]


@contextmanager
def connected(given: Mapping[str, Any]) -> Iterator[Connection]:
    """Connect; an error of a call becomes one line."""
    import grpc  # noqa: PLC0415

    connection = Connection(given)
    try:
        yield connection
    except grpc.RpcError as error:
        raise click.ClickException(reason(connection.address, error)) from None
    finally:
        connection.close()


def reason(address: str, error: Any) -> str:
    """Return what an error of gRPC means, in one line."""
    code, details = error.code().name, " ".join(str(error.details()).split())
    if code == "UNAVAILABLE":
        from lightningstore.client.connection import protocol_hint  # noqa: PLC0415

        if hint := protocol_hint(address, details):
            return hint.replace("(tls_ca)", "(--tls-ca)")
        if _details_of(error):
            return _worded(details, code)  # from a server: it is there, and says what is wrong
        why = re.split(r"remote host: (?:connect: )?|last error: ", details)[-1]
        return f"no server answers at {address} ({why}); is `lightningstore serve` running?"
    if code == "UNIMPLEMENTED":
        return f"the server at {address} does not have this call: it is older than this command (UNIMPLEMENTED)"
    if code == "DEADLINE_EXCEEDED":
        return f"no answer from {address} in time; is it the address of a LightningStore server?"
    return _worded(details, code)


def _details_of(error: Any) -> bytes:
    """Return the google.rpc.Status of an error of a server, as bytes; empty for an error of the connection."""
    trailers = dict(error.trailing_metadata() or ())
    return bytes(trailers.get(_DETAILS_KEY, b""))


def _worded(message: str, code: str) -> str:
    """Return an error of the server in the words of the command line: `succeeded`, not ATTEMPT_STATUS_SUCCEEDED."""
    words = _ENUM.sub(lambda match: match[1].lower(), message)
    return f"{words} ({code})"


def error_text(error: Exception) -> str:
    """Return an error in one line: of a file its name and what is wrong, of a call as `reason` does."""
    from lightningstore.client import LightningStoreError  # noqa: PLC0415

    if isinstance(error, LightningStoreError):
        return _worded(error.message, error.code.name)
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return str(error)


@contextmanager
def opened(given: Mapping[str, Any]) -> Iterator[LightningStore]:
    """Connect with the client, which repeats calls on a lost connection; an error becomes one line.

    A server that is not there at the beginning is an error at once.
    """
    from lightningstore.client import LightningStore, LightningStoreError  # noqa: PLC0415
    from lightningstore.v1 import statistics_pb2  # noqa: PLC0415

    with connected(given) as server:
        server.call(statistics_pb2.GetServerInfoRequest())
    connection = dict(given)
    try:
        with LightningStore(connection.pop("address"), timeout=REPEATED_SECONDS, **connection) as s:
            yield s
    except BrokenPipeError:
        raise
    except (LightningStoreError, ValueError, OSError, ImportError) as error:
        raise click.ClickException(error_text(error)) from None


def _health(**given: Any) -> None:
    """Ask a server, or with --namespace one of its namespaces, whether it can serve.

    Exit code 1 if it cannot. Needs no token.
    """
    import grpc  # noqa: PLC0415

    with connected(take(given)) as connection:
        try:
            status = connection.health()
        except grpc.RpcError as error:
            if connection.namespace and error.code() is grpc.StatusCode.NOT_FOUND:
                raise click.ClickException(
                    f"the server has no namespace {connection.namespace!r} (NOT_FOUND)"
                ) from None
            raise
    click.echo(status)
    if status != "SERVING":
        raise SystemExit(1)


health = click.Command("health", params=options(), callback=_health, help=_health.__doc__)
