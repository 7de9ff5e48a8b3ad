"""Owns what an evaluation tells of each method, in the contract's words.
Must not know how rows are measured or how results travel."""

from collections.abc import Sequence

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.config import Method
from tunesmith_trainer.evaluation import RowScore, summarise
from tunesmith_trainer.preference import PairScore


def wire_score(scores: Sequence[RowScore], method: Method) -> pb.Score:
    """The means over rows that mean something for the method."""
    score = summarise(scores)
    if method == "dpo":
        margins = [one.margin for one in scores if isinstance(one, PairScore)]
        return pb.Score(
            loss=score.loss,
            preference_accuracy=score.exact_match,
            preference_margin=sum(margins) / len(margins),
        )
    if method == "continued_pretraining":
        return pb.Score(loss=score.loss, token_accuracy=score.token_accuracy, perplexity=score.perplexity)
    return pb.Score(
        loss=score.loss,
        token_accuracy=score.token_accuracy,
        exact_match=score.exact_match,
        perplexity=score.perplexity,
    )
