"""Samples: rows of tokens to train on."""

from __future__ import annotations

import sys
from array import array
from functools import cached_property
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client._values import convert
from lightningstore.client._values.enums import RolloutStatus
from lightningstore.client._values.rollouts import ROLLOUT_STATUS
from lightningstore.client._values.triplets import TripletWarning
from lightningstore.client._values.view import View
from lightningstore.v1 import sample_pb2


class SampleSegment(NamedTuple):
    """One response of a model in a sample.

    Attributes:
        first_token: Position of its first token in the sample.
        end_token: Position after its last token.
        span_id: Id of the call's span: 16 lower-case hex digits.
        sequence_id: Sequence id of that span.
        model: Model that answered. May be empty.
        publish_number: Publish number of the resources that the attempt was claimed with. 0: none.
        agent_name: Name of the agent that made the call; "*" outside of any agent. Empty with source "proxy".
        finish_reason: Why the model stopped, such as "stop" or "length". May be empty.
        reward: Reward that was matched with this call. None: there is none.
    """

    first_token: int
    end_token: int
    span_id: str
    sequence_id: int
    model: str
    publish_number: int
    agent_name: str
    finish_reason: str
    reward: float | None

    @classmethod
    def from_message(cls, message: sample_pb2.SampleSegment) -> SampleSegment:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The segment.
        """
        return cls(
            message.first_token,
            message.end_token,
            message.span_id,
            message.sequence_id,
            message.model,
            message.publish_number,
            message.agent_name,
            message.finish_reason,
            message.reward if message.HasField("reward") else None,
        )


def _arrays_class() -> Any:
    """Return a message with the arrays of a sample as bytes: packed fields are arrays on the wire.

    It reads a serialised sample, whose other fields it does not know, and looks at no single token.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="lightningstore/client/samples.proto", package="lightningstore.client", syntax="proto3"
    )
    message = file.message_type.add(name="SampleArrays")
    for name in ("token_ids", "mask", "logprobs"):
        number = sample_pb2.Sample.DESCRIPTOR.fields_by_name[name].number
        kind = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
        message.field.add(name=name, number=number, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("lightningstore.client.SampleArrays"))


_Arrays = _arrays_class()


class Sample(View[sample_pb2.Sample]):
    """One row of tokens to train on: model calls in which each prompt continues the tokens of the call before it.

    A view of `message`, which is not copied. `token_ids`, `mask` and `logprobs` are buffers, which numpy and torch read
    without a copy: `numpy.asarray(sample.mask)`, `torch.frombuffer(sample.token_ids, dtype=torch.int32)`.

    Args:
        message: The message of the contract.
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.
        group_id: Group of the rollout. May be empty.

    Attributes:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.
        group_id: Group of the rollout. May be empty.
    """

    _shown = ("rollout_id", "index", "turn_count", "sampled_token_count", "reward")

    def __init__(
        self, message: sample_pb2.Sample, rollout_id: str, attempt_id: str, group_id: str
    ) -> None:
        super().__init__(message)
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.group_id = group_id

    @cached_property
    def _arrays(self) -> Any:
        return _Arrays.FromString(self.message.SerializeToString())

    @property
    def index(self) -> int:
        """Position among the samples of the attempt, counted from 0."""
        return self.message.index

    @cached_property
    def token_ids(self) -> array[int]:
        """Token ids in the order in which the model saw them, prompts and responses, as 32-bit integers."""
        return _numbers("i", self._arrays.token_ids)

    @cached_property
    def mask(self) -> memoryview[bool]:
        """For each token, whether it is trained in this row: the tokens of responses are. A buffer of bools."""
        return memoryview(bytearray(self._arrays.mask)).cast("?")

    @cached_property
    def logprobs(self) -> array[float] | None:
        """For each token, the log-probability with which it was sampled, 0 where `mask` is false, as 32-bit floats.

        None if a sampled token has none.
        """
        return _numbers("f", self._arrays.logprobs) if self.message.logprobs else None

    @property
    def prompt_token_count(self) -> int:
        """Number of tokens before the first sampled one."""
        return self.message.prompt_token_count

    @property
    def sampled_token_count(self) -> int:
        """Number of tokens that are trained in this row."""
        return sum(segment.end_token - segment.first_token for segment in self.message.segments)

    @cached_property
    def segments(self) -> list[SampleSegment]:
        """The responses in the row, in order."""
        return [SampleSegment.from_message(segment) for segment in self.message.segments]

    @property
    def turn_count(self) -> int:
        """Number of responses in the row."""
        return len(self.message.segments)

    @property
    def reward(self) -> float | None:
        """Reward of the attempt. None: it has none."""
        return self.message.reward if self.message.HasField("reward") else None

    @cached_property
    def scores(self) -> dict[str, float]:
        """Other scores of the attempt, by name."""
        return dict(self.message.scores)

    @property
    def truncated(self) -> bool:
        """Whether the last response ended at a limit of tokens."""
        return self.message.truncated

    @cached_property
    def messages(self) -> Any:
        """The messages of the row as traced: the prompt of its last call, then its response. None: there are none."""
        return convert.from_json(self.message.messages_json)

    @cached_property
    def tools(self) -> Any:
        """Definitions of the tools of its last call, usually a list of dicts. None: there are none."""
        return convert.from_json(self.message.tools_json)

    @cached_property
    def image_urls(self) -> list[str]:
        """References to the images in the prompt of its last call, in order."""
        return list(self.message.image_urls)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    __hash__ = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "rollout_id": self.rollout_id,
            "attempt_id": self.attempt_id,
            "group_id": self.group_id,
        }


def _numbers(code: str, data: bytes) -> array[Any]:
    numbers = array(code, data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class AttemptSamples(list[Sample]):
    """The samples of one attempt as a list, with what is known of the attempt.

    Args:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt. Empty for a rollout without attempts.

    Attributes:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt. Empty for a rollout without attempts.
        group_id: Group of the rollout. May be empty.
        status: Status of the rollout.
        queue_seconds: Seconds from the enqueueing of the rollout to the claim of the attempt. None without an attempt.
        run_seconds: Seconds from the claim to the end of the attempt. None until it has ended.
        warnings: The first 100 warnings: problems of the trace, and calls that are in no sample.
        warning_count: Total number of warnings.
    """

    def __init__(self, rollout_id: str, attempt_id: str) -> None:
        super().__init__()
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.group_id = ""
        self.status = RolloutStatus.UNRECOGNIZED
        self.queue_seconds: float | None = None
        self.run_seconds: float | None = None
        self.warnings: list[TripletWarning] = []
        self.warning_count = 0

    def add(self, part: sample_pb2.AttemptSamples) -> None:
        """Add the content of a message.

        Args:
            part: A part of the attempt, from a response.
        """
        self.group_id = part.group_id
        self.status = convert.from_number(RolloutStatus, ROLLOUT_STATUS, part.status)
        if part.HasField("queue_time"):
            self.queue_seconds = convert.from_duration(part.queue_time)
        if part.HasField("run_time"):
            self.run_seconds = convert.from_duration(part.run_time)
        self.extend(
            Sample(message, self.rollout_id, self.attempt_id, self.group_id)
            for message in part.samples
        )
        self.warnings.extend(map(TripletWarning.from_message, part.warnings))
        self.warning_count += part.warning_count
