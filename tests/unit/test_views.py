"""What the command line makes of messages, without a server."""

from __future__ import annotations

from lightningstore.service.cli.views import plain
from lightningstore.v1 import rollout_pb2


def test_an_integer_that_python_does_not_print_is_shown_as_text() -> None:
    digits = "8" * 5001  # what servers before the present limit took
    shown = plain(rollout_pb2.Rollout(input_json=f'{{"n": {digits}, "m": 7}}'.encode()))
    assert shown["input"] == {"n": digits, "m": 7}
