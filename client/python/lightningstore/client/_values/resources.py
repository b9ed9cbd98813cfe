"""Resources: what agents work with."""

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
    """An endpoint of a language model.

    Args:
        endpoint: Base URL, such as "http://host:8000/v1".
        model: Name of the model at the endpoint.
        api_key: Key for the endpoint. Empty: none. The repr does not show it.
        sampling_parameters: A JSON object, such as {"temperature": 0.7}.

    Example:
        llm = LLM("http://localhost:8000/v1", "qwen", sampling_parameters={"temperature": 0.7})
    """

    endpoint: str
    model: str = ""
    api_key: str = field(default="", repr=False)
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
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            TypeError: A part of a value has no JSON.
            ValueError: A number has no JSON, or a text is not valid UTF-8.
        """
        return resources_pb2.Resource(llm=self._to_llm())


@dataclass(frozen=True)
class ProxyLLM(LLM):
    """An endpoint of a language model behind a proxy that stores the spans of each call under its attempt.

    Runners pass it to the agent as an `LLM` with the URL of the attempt.

    Args:
        endpoint: Base URL of the proxy, such as "http://host:8000/v1".
        model: Name of the model at the endpoint.
        api_key: Key for the endpoint. Empty: none. The repr does not show it.
        sampling_parameters: A JSON object, such as {"temperature": 0.7}.
    """

    def to_message(self) -> resources_pb2.Resource:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            TypeError: A part of a value has no JSON.
            ValueError: A number has no JSON, or a text is not valid UTF-8.
        """
        return resources_pb2.Resource(proxy_llm=resources_pb2.ProxyLLM(llm=self._to_llm()))

    def base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """Return the base URL for the calls of one attempt.

        "/rollout/{rollout_id}/attempt/{attempt_id}" is inserted before a trailing "/v1" of the URL, or else appended.

        Args:
            rollout_id: Id of the rollout. None, together with `attempt_id`: the URL of the proxy itself.
            attempt_id: Id of the attempt.

        Returns:
            The base URL.

        Raises:
            ValueError: One id is given without the other.

        Example:
            proxy = ProxyLLM("http://proxy:4000/v1")
            url = proxy.base_url("ro-1", "at-1")
            assert url == "http://proxy:4000/rollout/ro-1/attempt/at-1/v1"
        """
        if not rollout_id and not attempt_id:
            return self.endpoint
        if not rollout_id or not attempt_id:
            raise ValueError("both rollout_id and attempt_id must be given, or neither")
        base = self.endpoint.rstrip("/")
        tail = ""
        if base.endswith("/v1"):
            base, tail = base[: -len("/v1")], "/v1"
        ids = quote(rollout_id, safe=""), quote(attempt_id, safe="")
        return f"{base}/rollout/{ids[0]}/attempt/{ids[1]}{tail}"

    def routed(self, rollout_id: str, attempt_id: str) -> LLM:
        """Return the endpoint for the calls of one attempt, see `base_url`.

        Args:
            rollout_id: Id of the rollout.
            attempt_id: Id of the attempt.

        Returns:
            An `LLM` with the URL of the attempt.
        """
        endpoint = self.base_url(rollout_id, attempt_id)
        return LLM(endpoint, self.model, self.api_key, self.sampling_parameters)


@dataclass(frozen=True)
class PromptTemplate:
    """A template that agents fill in.

    Args:
        template: The text of the template.
        engine: How it is filled in: "f_string", "jinja" or "poml".

    Example:
        prompt = PromptTemplate("Answer in one word: {question}")
        assert prompt.format(question="Why?") == "Answer in one word: Why?"
    """

    template: str
    engine: TemplateEngine | str | int = TemplateEngine.F_STRING

    def format(self, /, **values: Any) -> Any:
        """Fill the template in.

        Templates come from the store, so they are not trusted: f-strings cannot access attributes with a leading
        underscore, and Jinja runs in its sandbox. POML can read files and run code of the template: use it for
        trusted templates only. Jinja requires `pip install 'lightningstore[jinja]'`, POML
        `pip install 'lightningstore[poml]'`.

        Args:
            **values: The values by name.

        Returns:
            The text; with POML, the chat messages.

        Raises:
            KeyError: A value of an f-string is missing. With Jinja: `jinja2.UndefinedError`.
            ValueError: The template is invalid. With Jinja: `jinja2.TemplateError`.
            ImportError: The engine is not installed.
        """
        engine = convert.to_number(TEMPLATE_ENGINE, self.engine)
        return templates.fill(self.template, engine, values)

    def to_message(self) -> resources_pb2.Resource:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            ValueError: The engine is unknown.
        """
        engine = convert.to_number(TEMPLATE_ENGINE, self.engine)
        template = resources_pb2.PromptTemplate(template=valid(self.template), engine=engine)  # type: ignore[arg-type]
        return resources_pb2.Resource(prompt_template=template)


@dataclass(frozen=True)
class CustomResource:
    """A resource of any other kind, such as weights or a checkpoint.

    Args:
        type: Kind of the resource, chosen by the caller. May be empty.
        value: Any value with JSON.
    """

    type: str
    value: Any

    def to_message(self) -> resources_pb2.Resource:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            TypeError: A part of the value has no JSON.
            ValueError: A number has no JSON.
        """
        custom = resources_pb2.CustomResource(
            type=valid(self.type), value_json=convert.to_json(self.value)
        )
        return resources_pb2.Resource(custom=custom)


Kind = LLM | ProxyLLM | PromptTemplate | CustomResource


def to_resource(value: Any) -> resources_pb2.Resource:
    """Convert a resource to a message. Any value with JSON becomes a custom resource without type."""
    if isinstance(value, resources_pb2.Resource):
        return value
    if isinstance(value, LLM | PromptTemplate | CustomResource):
        return value.to_message()
    return CustomResource("", value).to_message()


def to_resources(values: Mapping[str, Any]) -> dict[str, resources_pb2.Resource]:
    """Convert named resources to messages.

    Raises:
        TypeError: A part of a value has no JSON.
        ValueError: A number has no JSON, or a name is not valid UTF-8.
    """
    messages: dict[str, resources_pb2.Resource] = {}
    for name, value in values.items():
        with naming(f"resources[{name!r:.100}]"):
            check("the name", name)
            messages[name] = to_resource(value)
    return messages


def from_resource(message: resources_pb2.Resource) -> Kind | resources_pb2.Resource:
    """Convert a message to a resource. A kind that this client does not know stays a message."""
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
    """A versioned map of resources by name. A view of `message`, which is not copied.

    `resources["name"]` returns a resource, and `"name" in resources` tests for one.

    Args:
        message: The message of the contract.
    """

    _shown = ("resources_id", "version")

    @property
    def resources_id(self) -> str:
        """Id of the map."""
        return self.message.resources_id

    @property
    def version(self) -> int:
        """Version, which counts from 1."""
        return self.message.version

    @property
    def publish_number(self) -> int:
        """Number of this version among all that were published, of any id, from 1. 0 from servers without them."""
        return self.message.publish_number

    @property
    def create_time(self) -> datetime:
        """Time at which version 1 was created, in UTC."""
        return convert.from_timestamp(self.message.create_time)

    @property
    def update_time(self) -> datetime:
        """Time at which this version was created, in UTC."""
        return convert.from_timestamp(self.message.update_time)

    @cached_property
    def resources(self) -> dict[str, Any]:
        """LLM, ProxyLLM, PromptTemplate or CustomResource objects by name, in the order in which they were added.

        If the client that added them sent no order, they are ordered by name.
        """
        messages = self.message.resources
        # A map of protobuf has no order: it differs between processes.
        names = dict.fromkeys((*self.message.names, *sorted(messages)))
        return {name: from_resource(messages[name]) for name in names if name in messages}

    def __getitem__(self, name: str) -> Any:
        return self.resources[name]

    def __contains__(self, name: object) -> bool:
        return name in self.message.resources
