"""What users see of triplets."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.view import View
from lightningstore.v1 import triplet_pb2


class Triplet(View[triplet_pb2.Triplet]):
    """One call of a model as training wants it: prompt, response, reward."""

    _shown = ("rollout_id", "sequence_id", "agent_name", "response_id", "reward")

    def __init__(self, message: triplet_pb2.Triplet, rollout_id: str, attempt_id: str) -> None:
        """Take the message, which is not copied, and the attempt that it belongs to."""
        super().__init__(message)
        #: The attempt that the call was made in.
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id

    @cached_property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt; empty if the trace has none."""
        return list(self.message.prompt.token_ids)

    @cached_property
    def response_token_ids(self) -> list[int]:
        """Token ids of the response; empty if the trace has none."""
        return list(self.message.response.token_ids)

    @cached_property
    def prompt(self) -> Any:
        """The messages as they were traced, usually a list of dicts; None if there are none."""
        return convert.from_json(self.message.prompt.content_json)

    @cached_property
    def tools(self) -> Any:
        """Definitions of the tools that the model was offered, usually a list of dicts; None if there are none."""
        return convert.from_json(self.message.prompt.tools_json)

    @cached_property
    def response(self) -> Any:
        """The completions as they were traced, usually a list of dicts; None if there are none."""
        return convert.from_json(self.message.response.content_json)

    @cached_property
    def image_urls(self) -> list[str]:
        """URLs of the images in the prompt, in their order."""
        return list(self.message.prompt.image_urls)

    @cached_property
    def logprobs(self) -> list[float]:
        """Log-probability of each token of the response; empty if the trace does not have all."""
        return list(self.message.response.logprobs)

    @cached_property
    def logprobs_content(self) -> Any:
        """The traced `logprobs.content`, a list with a dict a token; None if there is none."""
        return convert.from_json(self.message.response.logprobs_json)

    @property
    def reward(self) -> float | None:
        """Primary dimension of its reward; None if it has none."""
        return self.message.reward.value if self.message.HasField("reward") else None

    @cached_property
    def rewards(self) -> dict[str, float]:
        """All dimensions of its reward, the primary one first; empty if it has none."""
        return {d.name: d.value for d in self.message.reward.dimensions}

    @property
    def response_id(self) -> str:
        """Id that the model's server gave the response; empty if the span has none."""
        return self.message.response_id

    @property
    def agent_name(self) -> str:
        """The agent that the call was made under, "*" outside of any; empty from the proxy."""
        return self.message.agent_name

    @cached_property
    def request_metadata(self) -> dict[str, Any]:
        """What else the span tells of the request: model, temperature and so on."""
        return convert.from_json_object(self.message.request_json)

    @cached_property
    def response_metadata(self) -> dict[str, Any]:
        """What else the span tells of the response: model, finish reasons and so on."""
        return convert.from_json_object(self.message.response_json)

    @property
    def span_id(self) -> str:
        """The span of the call, as 16 lower-case hex digits."""
        return self.message.span_id

    @property
    def sequence_id(self) -> int:
        """Sequence id of that span."""
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
    """A reward that no call was found for."""

    #: The primary dimension.
    value: float
    #: All dimensions, the primary one first.
    dimensions: dict[str, float]
    #: The span that holds it.
    span_id: str
    sequence_id: int

    @classmethod
    def from_message(cls, message: triplet_pb2.TripletReward) -> UnmatchedReward:
        """Read it from a message of the contract."""
        dimensions = {d.name: d.value for d in message.dimensions}
        return cls(message.value, dimensions, message.span_id, message.sequence_id)


class TripletWarning(NamedTuple):
    """Something in a trace that could not be read and was left out."""

    #: The span; empty where it is about the whole attempt.
    span_id: str
    sequence_id: int
    #: Key of the attribute; may be empty.
    attribute: str
    #: What is wrong, for people.
    message: str

    @classmethod
    def from_message(cls, message: triplet_pb2.TripletWarning) -> TripletWarning:
        """Read it from a message of the contract."""
        return cls(message.span_id, message.sequence_id, message.attribute, message.message)


class AttemptTriplets(list[Triplet]):
    """The triplets of one attempt, and what was left over of its trace."""

    def __init__(self, rollout_id: str, attempt_id: str) -> None:
        """Take the attempt; `attempt_id` is empty for a rollout that has none yet."""
        super().__init__()
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        #: Rewards that no call was found for.
        self.unmatched_rewards: list[UnmatchedReward] = []
        #: What could not be read: the first 100, and the number of all.
        self.warnings: list[TripletWarning] = []
        self.warning_count = 0

    def add(self, part: triplet_pb2.AttemptTriplets) -> None:
        """Take a part of the answer."""
        self.extend(Triplet(t, self.rollout_id, self.attempt_id) for t in part.triplets)
        self.unmatched_rewards.extend(map(UnmatchedReward.from_message, part.unmatched_rewards))
        self.warnings.extend(map(TripletWarning.from_message, part.warnings))
        self.warning_count += part.warning_count
