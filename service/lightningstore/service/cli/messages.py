"""The last message of a prompt, a response or a row of samples as one line of text."""

from __future__ import annotations

import json

from lightningstore.client.message_json import json_value
from lightningstore.service.triplets.chat import messages_of
from lightningstore.v1.triplet_pb2 import ChatPart


def last_text(content: bytes) -> str:
    """Return what the last message says, then the tools that it calls: `Let me see. get_weather({"city":"Paris"})`.

    What it thinks is shown if it says nothing else. A message without any of these is shown as its JSON.
    """
    if not content:
        return ""
    value = json_value(content)
    last = value[-1] if isinstance(value, list) and value else value
    parts = [part for message in messages_of(last, "") for part in message.parts]
    said = " ".join(filter(None, map(_text, parts))) or " ".join(part.reasoning for part in parts)
    return " ".join((said or json.dumps(last, ensure_ascii=False)).split())


def _text(part: ChatPart) -> str:
    if part.HasField("tool_call"):
        return f"{part.tool_call.name}({part.tool_call.arguments})"
    if part.image_url:
        return "[image]"
    return part.text or part.tool_result.content
