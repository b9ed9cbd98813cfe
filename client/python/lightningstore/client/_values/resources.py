"""What users see of resources, and make themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

from lightningstore.client._values import convert, templates
from lightningstore.client._values.convert import RawJSON
from lightningstore.client._values.enums import TemplateEngine
from lightningstore.client._values.text import check, names_fields, naming, valid
from lightningstore.client._values.view import View
from lightningstore.v1 import resources_pb2

TEMPLATE_ENGINE = resources_pb2.TemplateEngine.DESCRIPTOR


@dataclass(frozen=True)
class LLM:
    """A language model endpoint."""

    #: Base URL, "http://host:8000/v1" for instance.
    endpoint: str
    #: Name of the model at the endpoint.
    model: str = ""
    #: Key for the endpoint. Empty: none needed.
    api_key: str = field(default="", repr=False)
    #: JSON object of sampling parameters.
    sampling_parameters: Mapping[str, Any] | RawJSON = field(default_factory=dict)

    @names_fields
    def _to_llm(self) -> resources_pb2.LLM:
        return resources_pb2.LLM(
            endpoint=self.endpoint,
            model=self.model,
            api_key=self.api_key,
            sampling_parameters_json=convert.to_json_object(
                self.sampling_parameters, "sampling_parameters"
            ),
        )

    def to_message(self) -> resources_pb2.Resource:
        """Return it as message of the contract."""
        return resources_pb2.Resource(llm=self._to_llm())


@dataclass(frozen=True)
class ProxyLLM(LLM):
    """A language model endpoint behind a proxy that files each call under its attempt."""

    def to_message(self) -> resources_pb2.Resource:
        """Return it as message of the contract."""
        return resources_pb2.Resource(proxy_llm=resources_pb2.ProxyLLM(llm=self._to_llm()))

    def base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """Return the base URL for the calls of one attempt; without ids that of the proxy itself.

        "/rollout/{rollout_id}/attempt/{attempt_id}" stands before a trailing "/v1" of the URL, or at its
        end where there is none. Raises ValueError for one id without the other.
        """
        if not rollout_id and not attempt_id:
            return self.endpoint
        if not rollout_id or not attempt_id:
            raise ValueError("both a rollout id and an attempt id are wanted, or none")
        base = self.endpoint.rstrip("/")
        tail = ""
        if base.endswith("/v1"):
            base, tail = base[: -len("/v1")], "/v1"
        ids = quote(rollout_id, safe=""), quote(attempt_id, safe="")
        return f"{base}/rollout/{ids[0]}/attempt/{ids[1]}{tail}"

    def routed(self, rollout_id: str, attempt_id: str) -> LLM:
        """Return the endpoint of one attempt, see `base_url`."""
        endpoint = self.base_url(rollout_id, attempt_id)
        return LLM(endpoint, self.model, self.api_key, self.sampling_parameters)


@dataclass(frozen=True)
class PromptTemplate:
    """A template that agents fill in."""

    #: The text.
    template: str
    #: How it is filled in.
    engine: TemplateEngine | str | int = TemplateEngine.F_STRING

    def format(self, /, **values: Any) -> Any:
        """Fill the template in, and return the text; with POML the chat messages.

        Templates come out of the store, so they are not trusted: f-strings reach no attribute that begins
        with an underscore, and Jinja runs in its sandbox. Jinja needs `pip install 'lightningstore[jinja]'`
        and POML `pip install 'lightningstore[poml]'`: ImportError says so.
        POML can read files and runs what the template says: use it for templates that you trust.

        Raises KeyError (f-string) or jinja2.UndefinedError for a value that is missing, and ValueError or
        jinja2.TemplateError for a template that is none.
        """
        engine = convert.to_number(TEMPLATE_ENGINE, self.engine)
        return templates.fill(self.template, engine, values)

    def to_message(self) -> resources_pb2.Resource:
        """Return it as message of the contract. Raises ValueError for an unknown engine."""
        engine = convert.to_number(TEMPLATE_ENGINE, self.engine)
        template = resources_pb2.PromptTemplate(template=valid(self.template), engine=engine)  # type: ignore[arg-type]
        return resources_pb2.Resource(prompt_template=template)


@dataclass(frozen=True)
class CustomResource:
    """A resource of the caller's own kind: weights, a checkpoint, anything."""

    #: What it is, in the caller's words. May be empty.
    type: str
    #: Any JSON value.
    value: Any

    def to_message(self) -> resources_pb2.Resource:
        """Return it as message of the contract. Raises TypeError or ValueError for invalid JSON."""
        custom = resources_pb2.CustomResource(
            type=valid(self.type), value_json=convert.to_json(self.value)
        )
        return resources_pb2.Resource(custom=custom)


Kind = LLM | ProxyLLM | PromptTemplate | CustomResource


def to_resource(value: Any) -> resources_pb2.Resource:
    """Return a resource as message; any JSON value becomes a custom one without type."""
    if isinstance(value, resources_pb2.Resource):
        return value
    if isinstance(value, LLM | PromptTemplate | CustomResource):
        return value.to_message()
    return CustomResource("", value).to_message()


def to_resources(values: Mapping[str, Any]) -> dict[str, resources_pb2.Resource]:
    """Return named resources as messages.

    Raises TypeError or ValueError for what has no JSON and for a name that is not valid UTF-8.
    """
    found: dict[str, resources_pb2.Resource] = {}
    for name, value in values.items():
        with naming(f"resources[{name!r:.100}]"):
            check("the name", name)
            found[name] = to_resource(value)
    return found


def from_resource(message: resources_pb2.Resource) -> Kind | resources_pb2.Resource:
    """Read a resource; one of a kind that came after this client stays the message that it is."""
    kind = message.WhichOneof("kind")
    if kind == "llm":
        return _from_llm(LLM, message.llm)
    if kind == "proxy_llm":
        return _from_llm(ProxyLLM, message.proxy_llm.llm)
    if kind == "prompt_template":
        prompt = message.prompt_template
        engine = convert.from_number(TemplateEngine, TEMPLATE_ENGINE, prompt.engine)
        return PromptTemplate(prompt.template, engine)
    if kind == "custom":
        return CustomResource(message.custom.type, convert.from_json(message.custom.value_json))
    return message


def _from_llm(kind: type[LLM], message: resources_pb2.LLM) -> LLM:
    parameters = convert.from_json_object(message.sampling_parameters_json)
    return kind(message.endpoint, message.model, message.api_key, parameters)


class Resources(View[resources_pb2.Resources]):
    """A named, versioned map of what agents work with."""

    _shown = ("resources_id", "version")

    @property
    def resources_id(self) -> str:
        """Its id."""
        return self.message.resources_id

    @property
    def version(self) -> int:
        """Counts the updates, from 1."""
        return self.message.version

    @property
    def create_time(self) -> datetime:
        """When version 1 was made."""
        return convert.from_timestamp(self.message.create_time)

    @property
    def update_time(self) -> datetime:
        """When this version was made."""
        return convert.from_timestamp(self.message.update_time)

    @cached_property
    def resources(self) -> dict[str, Any]:
        """LLM, ProxyLLM, PromptTemplate or CustomResource by name, in the order in which they were given.

        Those whose order nobody told come last, by name.
        """
        found = self.message.resources
        # A map of protobuf has no order, and another one in each process.
        names = dict.fromkeys((*self.message.names, *sorted(found)))
        return {name: from_resource(found[name]) for name in names if name in found}

    def __getitem__(self, name: str) -> Any:
        return self.resources[name]

    def __contains__(self, name: object) -> bool:
        return name in self.message.resources
