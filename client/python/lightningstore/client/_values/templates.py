"""Prompt templates, filled in by their engines. The libraries are imported when they are needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from lightningstore.v1 import resources_pb2


def fill(template: str, engine: int, values: Mapping[str, Any]) -> Any:
    """Fill in a template. Return the text; with POML, the chat messages.

    Raises ImportError if the library of the engine is not installed, ValueError for an unknown engine.
    """
    if engine == resources_pb2.TEMPLATE_ENGINE_F_STRING:
        return _FORMATTER.vformat(template, (), values)
    if engine == resources_pb2.TEMPLATE_ENGINE_JINJA:
        return _jinja(template, values)
    if engine == resources_pb2.TEMPLATE_ENGINE_POML:
        return _poml(template, values)
    raise ValueError(f"the template engine must be f_string, jinja or poml, not number {engine}")


#: Widths and precisions large enough to exhaust memory.
_HUGE = re.compile(r"\d{5}")


class _Formatter(Formatter):
    """str.format without access to private attributes, which lead to the whole process."""

    def get_field(
        self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, int | str]:
        if "._" in field_name:
            raise ValueError(f"{{{field_name}}}: names must not start with an underscore")
        value: tuple[Any, int | str] = super().get_field(field_name, args, kwargs)
        return value

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        del args
        if isinstance(key, int):
            raise ValueError("{}: every value must have a name, as in {question}")  # noqa: TRY004
        return kwargs[key]

    def format_field(self, value: Any, format_spec: str) -> str:
        if _HUGE.search(format_spec):
            raise ValueError(f"{{:{format_spec}}}: a width or precision of at most 9999 is allowed")
        return str(super().format_field(value, format_spec))


_FORMATTER = _Formatter()


def _jinja(template: str, values: Mapping[str, Any]) -> str:
    try:
        from jinja2 import StrictUndefined  # noqa: PLC0415
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "this template requires Jinja: pip install 'lightningstore[jinja]'"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(template).render(values)


def _poml(template: str, values: Mapping[str, Any]) -> Any:
    try:
        from poml import poml  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "this template requires POML: pip install 'lightningstore[poml]'"
        ) from error
    if not template.lstrip().startswith("<"):
        # The library would take it for the path of a file.
        raise ValueError("a POML template must start with a tag, such as <poml>")
    return poml(template, context=dict(values), format="message_dict")
