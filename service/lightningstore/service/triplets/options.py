"""What is asked of ListTriplets and ListSamples, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.v1.sample_pb2 import ListSamplesRequest
from lightningstore.v1.triplet_pb2 import (
    REWARD_POLICY_BY_SEQUENCE,
    REWARD_POLICY_FIRST_OCCURRENCE,
    REWARD_POLICY_UNSPECIFIED,
    TRIPLET_SOURCE_PROXY,
    ListTripletsRequest,
    RewardPolicy,
    TripletSource,
)

LLM_CALL_MATCH = r"openai\.chat\.completion"
_IS_CALL = re.compile(LLM_CALL_MATCH).search
#: Longest regular expression, and most memory that one may take.
MAX_EXPRESSION = 512
_EXPRESSION_BYTES = 1 << 20
#: Names whose match is remembered.
_REMEMBERED = 1000

Matcher = Callable[[str], bool]
Request = ListTripletsRequest | ListSamplesRequest


@dataclass(frozen=True)
class Options:
    """How calls are found and rewarded. Made by `of`."""

    #: Whether attributes decide what is a call, and the name only where they do not.
    by_attributes: bool
    is_call: Matcher
    #: None: any agent, and none at all.
    is_agent: Matcher | None
    proxy: bool
    exclude_calls_under_rewards: bool
    deduplicate: bool
    repair_hierarchy: bool
    skip_without_tokens: bool
    as_messages: bool
    reward_policy: int

    @classmethod
    def of(cls, request: Request) -> Options:
        """Read a request. Raises FieldInvalid."""
        check_enum("source", TripletSource, request.source, unspecified=True)
        check_enum("reward_policy", RewardPolicy, request.reward_policy, unspecified=True)
        proxy = request.source == TRIPLET_SOURCE_PROXY
        policy: int = request.reward_policy
        if proxy:
            for name in ("llm_call_match", "agent_match"):
                if getattr(request, name):
                    raise FieldInvalid(
                        name, "must be empty with the source PROXY, which has no tree"
                    )
            if policy not in (REWARD_POLICY_UNSPECIFIED, REWARD_POLICY_BY_SEQUENCE):
                raise FieldInvalid("reward_policy", "the source PROXY matches BY_SEQUENCE alone")
            policy = REWARD_POLICY_BY_SEQUENCE
        _check_final_rewards(request)
        agent = request.agent_match
        return cls(
            by_attributes=not request.llm_call_match,
            is_call=matcher("llm_call_match", request.llm_call_match)
            if request.llm_call_match
            else lambda name: _IS_CALL(name) is not None,
            is_agent=matcher("agent_match", agent) if agent else None,
            proxy=proxy,
            exclude_calls_under_rewards=_unless_false(request, "exclude_calls_under_rewards"),
            deduplicate=_unless_false(request, "deduplicate"),
            repair_hierarchy=_unless_false(request, "repair_hierarchy"),
            skip_without_tokens=_of_triplets(request, "skip_without_tokens"),
            as_messages=_of_triplets(request, "as_messages"),
            reward_policy=policy or REWARD_POLICY_FIRST_OCCURRENCE,
        )


def _of_triplets(request: Request, name: str) -> bool:
    return isinstance(request, ListTripletsRequest) and bool(getattr(request, name))


def _unless_false(request: Request, name: str) -> bool:
    return not request.HasField(name) or bool(getattr(request, name))  # type: ignore[arg-type]


def _check_final_rewards(request: Request) -> None:
    known = set(request.rollout_ids) if request.final_rewards else set()
    for rollout_id, value in request.final_rewards.items():
        if rollout_id not in known:
            raise FieldInvalid(f"final_rewards[{rollout_id!r}]", "is not among rollout_ids")
        if not math.isfinite(value):
            raise FieldInvalid(f"final_rewards[{rollout_id!r}]", "must be a finite number")


def matcher(field: str, expression: str) -> Matcher:
    """Return a test whether a regular expression matches somewhere in a text. Raises FieldInvalid.

    RE2 takes linear time in the length of the text and limited memory for every expression, so a caller cannot
    block the server with one.
    """
    import re2  # noqa: PLC0415  (a part of the server: the command line draws traces without it)

    if len(expression) > MAX_EXPRESSION:
        raise FieldInvalid(
            field, f"{len(expression)} characters, at most {MAX_EXPRESSION} are allowed"
        )
    settings = re2.Options()
    settings.log_errors = False
    settings.never_capture = True
    settings.max_mem = _EXPRESSION_BYTES
    try:
        compiled = re2.compile(expression, settings)
    except re2.error as error:
        why = error.args[0] if error.args else "cannot be compiled"
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise FieldInvalid(
            field,
            f"no regular expression of RE2 ({text}); look-around and back-references do not exist, "
            "a backslash takes a special character literally",
        ) from None
    known: dict[str, bool] = {}

    def test(text: str) -> bool:
        found = known.get(text)
        if found is None:
            found = compiled.search(text) is not None
            if len(known) < _REMEMBERED:
                known[text] = found
        return found

    return test
