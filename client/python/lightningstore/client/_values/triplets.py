"""Triplets: the model calls of a trace as training data."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.view import View
from lightningstore.v1 import triplet_pb2


class Triplet(View[triplet_pb2.Triplet]):
    """One call of a model as training data: prompt, response, reward. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.

    Attributes:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.
    """

    _shown = ("rollout_id", "sequence_id", "agent_name", "response_id", "reward")

    def __init__(self, message: triplet_pb2.Triplet, rollout_id: str, attempt_id: str) -> None:
        super().__init__(message)
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id

    @cached_property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt. Empty if the trace has none."""
        return list(self.message.prompt.token_ids)

    @cached_property
    def response_token_ids(self) -> list[int]:
        """Token ids of the response. Empty if the trace has none."""
        return list(self.message.response.token_ids)

    @property
    def prompt_token_count(self) -> int | None:
        """Number of tokens of the prompt, as the model's server reported it. None if the trace has none."""
        message = self.message
        return message.prompt_token_count if message.HasField("prompt_token_count") else None

    @property
    def response_token_count(self) -> int | None:
        """Number of tokens of the response, as the model's server reported it. None if the trace has none."""
        message = self.message
        return message.response_token_count if message.HasField("response_token_count") else None

    @cached_property
    def prompt(self) -> Any:
        """The messages of the prompt as traced, usually a list of dicts. None if the trace has none."""
        return convert.from_json(self.message.prompt.content_json)

    @cached_property
    def tools(self) -> Any:
        """Definitions of the tools that the model was offered, usually a list of dicts; None if there are none."""
        return convert.from_json(self.message.prompt.tools_json)

    @cached_property
    def response(self) -> Any:
        """The completions as traced, usually a list of dicts. None if the trace has none."""
        return convert.from_json(self.message.response.content_json)

    @cached_property
    def prompt_messages(self) -> list[triplet_pb2.ChatMessage]:
        """The messages of the prompt in one form. Empty unless `as_messages` was requested."""
        return list(self.message.prompt.messages)

    @cached_property
    def response_messages(self) -> list[triplet_pb2.ChatMessage]:
        """The completions in one form. Empty unless `as_messages` was requested."""
        return list(self.message.response.messages)

    @cached_property
    def image_urls(self) -> list[str]:
        """URLs of the images in the prompt, in order."""
        return list(self.message.prompt.image_urls)

    @cached_property
    def logprobs(self) -> list[float]:
        """Log-probability of each token of the response. Empty if the trace does not have all of them."""
        return list(self.message.response.logprobs)

    @cached_property
    def logprobs_content(self) -> Any:
        """The traced `logprobs.content`: a list with one dict per token. None if the trace has none."""
        return convert.from_json(self.message.response.logprobs_json)

    @property
    def reward(self) -> float | None:
        """Primary dimension of the reward. None: no reward was matched."""
        return self.message.reward.value if self.message.HasField("reward") else None

    @cached_property
    def rewards(self) -> dict[str, float]:
        """All dimensions of the reward, the primary one first. Empty: no reward was matched."""
        return {d.name: d.value for d in self.message.reward.dimensions}

    @property
    def response_id(self) -> str:
        """Id of the response, from the model's server. Empty if the span has none."""
        return self.message.response_id

    @property
    def agent_name(self) -> str:
        """Name of the agent that made the call; "*" outside of any agent. Empty with source "proxy"."""
        return self.message.agent_name

    @cached_property
    def request_metadata(self) -> dict[str, Any]:
        """Other attributes of the request, such as model and temperature."""
        return convert.from_json_object(self.message.request_json)

    @cached_property
    def response_metadata(self) -> dict[str, Any]:
        """Other attributes of the response, such as model and finish reasons."""
        return convert.from_json_object(self.message.response_json)

    @property
    def span_id(self) -> str:
        """Id of the call's span: 16 lower-case hex digits."""
        return self.message.span_id

    @property
    def sequence_id(self) -> int:
        """Sequence id of the call's span."""
        return self.message.sequence_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Triplet):
            return NotImplemented
        return self.message == other.message and (self.rollout_id, self.attempt_id) == (
            other.rollout_id,
            other.attempt_id,
        )

    __hash__ = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "rollout_id": self.rollout_id,
            "attempt_id": self.attempt_id,
        }


class UnmatchedReward(NamedTuple):
    """A reward that was not matched with a call.

    Attributes:
        value: The primary dimension.
        dimensions: All dimensions, the primary one first.
        span_id: Id of the span with the reward.
        sequence_id: Sequence id of that span.
    """

    value: float
    dimensions: dict[str, float]
    span_id: str
    sequence_id: int

    @classmethod
    def from_message(cls, message: triplet_pb2.TripletReward) -> UnmatchedReward:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The reward.
        """
        dimensions = {d.name: d.value for d in message.dimensions}
        return cls(message.value, dimensions, message.span_id, message.sequence_id)


class TripletWarning(NamedTuple):
    """A part of a trace that could not be read and was left out.

    Attributes:
        span_id: Id of the span. Empty: the warning is about the whole attempt.
        sequence_id: Sequence id of that span.
        attribute: Key of the attribute. May be empty.
        message: What is wrong, for people.
    """

    span_id: str
    sequence_id: int
    attribute: str
    message: str

    @classmethod
    def from_message(cls, message: triplet_pb2.TripletWarning) -> TripletWarning:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The warning.
        """
        return cls(message.span_id, message.sequence_id, message.attribute, message.message)


class AttemptTriplets(list[Triplet]):
    """The triplets of one attempt as a list, with the rewards and warnings of its trace.

    Args:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt. Empty for a rollout without attempts.

    Attributes:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt. Empty for a rollout without attempts.
        unmatched_rewards: Rewards that were not matched with a call.
        warnings: The first 100 warnings.
        warning_count: Total number of warnings.
    """

    def __init__(self, rollout_id: str, attempt_id: str) -> None:
        super().__init__()
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.unmatched_rewards: list[UnmatchedReward] = []
        self.warnings: list[TripletWarning] = []
        self.warning_count = 0

    def add(self, part: triplet_pb2.AttemptTriplets) -> None:
        """Add the content of a message.

        Args:
            part: A part of the attempt, from a response.
        """
        self.extend(Triplet(t, self.rollout_id, self.attempt_id) for t in part.triplets)
        self.unmatched_rewards.extend(map(UnmatchedReward.from_message, part.unmatched_rewards))
        self.warnings.extend(map(TripletWarning.from_message, part.warnings))
        self.warning_count += part.warning_count
