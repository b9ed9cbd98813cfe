"""Images in the messages of a prompt, in the forms of providers and instrumentations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightningstore.service.triplets.steps import sort
from lightningstore.service.triplets.values import Warn, read_json

#: Where a part of a message has a reference to its image, and where the image itself in base64.
_REFERENCES = (
    "url",
    "uri",
    "image_url",
    "file_uri",
    "fileUri",
    "file_id",
    "image",
    "source",
    "file_data",
    "fileData",
)
_DATA = ("data", "content", "b64_json", "blob", "bytes")
_MIME = ("mime_type", "mimeType", "media_type", "mediaType")
_INLINE = ("inline_data", "inlineData")
_MAX_LEVELS = 5


def image_urls(messages: Any, warn: Warn) -> list[str]:
    """Return the URLs of images in the messages, in their order; images that are there whole as data URLs."""
    urls: list[str] = []
    if isinstance(messages, dict):
        numbered = [key for key in messages if key.isascii() and key.isdecimal()]
        messages = [messages[key] for key in sort(numbered, key=lambda k: (len(k), k))]
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            found = (image_url(part) for part in _parts(message, warn) if isinstance(part, dict))
            urls.extend(filter(None, found))
    return urls


def _parts(message: dict[str, Any], warn: Warn) -> Iterator[Any]:
    for name in ("content", "parts", "contents"):
        content = message.get(name)
        if isinstance(content, str) and "image" in content and content.lstrip()[:1] == "[":
            try:
                content = read_json(content)
            except ValueError:
                if "image_url" in content:
                    warn("prompt content", "not JSON, so its images are unknown")
        if isinstance(content, dict):
            content = list(content.values())
        if isinstance(content, list):
            yield from content


def image_url(part: dict[str, Any]) -> str:
    """Return the reference of a part of a message to its image, empty if the part is not an image."""
    for name in _INLINE:
        if isinstance(inner := part.get(name), dict) and _is_image(inner):
            return _reference(inner, 0)
    if isinstance(inner := part.get("file_data", part.get("fileData")), dict) and _is_image(inner):
        return _reference(inner, 0)
    return _reference(part, 0) if _is_image(part) else ""


def _is_image(part: dict[str, Any]) -> bool:
    words = (part.get("type"), part.get("modality"), _mime(part))
    return any(isinstance(word, str) and "image" in word.lower() for word in words)


def _mime(part: dict[str, Any]) -> str:
    found = next((part[name] for name in _MIME if isinstance(part.get(name), str)), "")
    return str(found)


def _reference(part: dict[str, Any], level: int) -> str:
    for name in _REFERENCES:
        inner = part.get(name)
        if isinstance(inner, str) and inner:
            is_reference = ":" in inner[:64] or name != "image"
            return inner if is_reference else _data_url(part, inner)
        if (
            isinstance(inner, dict)
            and level < _MAX_LEVELS
            and (url := _reference(inner, level + 1))
        ):
            return url
    for name in _DATA:
        if isinstance(inner := part.get(name), str) and inner:
            return inner if inner.startswith("data:") else _data_url(part, inner)
    return ""


def _data_url(part: dict[str, Any], data: str) -> str:
    return f"data:{_mime(part) or 'image/png'};base64,{data}"
