"""The calls of a model as rows of tokens to train on. Pure.

docs/samples.md has the rules. The calls come from the trace of an attempt, see `triplets`.
"""

from lightningstore.service.samples.folding import Fold, FoldedCall, Row
from lightningstore.service.samples.held import HeldIds
from lightningstore.service.samples.reading import (
    Answer,
    Ids,
    IdsReader,
    add_answer,
    answer_of,
    lacks_answer,
)
from lightningstore.service.samples.rows import About, sample_of

__all__ = [
    "About",
    "Answer",
    "Fold",
    "FoldedCall",
    "HeldIds",
    "Ids",
    "IdsReader",
    "Row",
    "add_answer",
    "answer_of",
    "lacks_answer",
    "sample_of",
]
