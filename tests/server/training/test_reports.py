"""What a run tells becomes what users see: numbers that are finite, texts of a bounded length."""

from __future__ import annotations

import json
import math

from google.protobuf.json_format import ParseDict

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.fine_tunes.schemas import Evaluation
from tunesmith_server.training import reports


def test_flips_are_told_as_before_and_after() -> None:
    told = reports.evaluation(
        pb.Evaluation(
            rows=2,
            base=pb.Score(loss=1.0, perplexity=math.e),
            tuned=pb.Score(loss=0.5, perplexity=math.inf),
            flipped_to_right=1,
            flips=[pb.FlippedRow(row=7, right=True)] * 200,
            forgetting=pb.Forgetting(
                items=40, flips=[pb.FlippedItem(topic="code", prompt="p" * 1000, right=False)], base=pb.Score(loss=2.0)
            ),
        ),
        24,
    )

    shown = Evaluation(**told)
    assert shown.step == 24
    assert shown.flips[0].model_dump() == {"row": 7, "before": "wrong", "after": "right"}
    assert len(shown.flips) == 100
    assert (shown.base.perplexity, shown.tuned.perplexity) == (math.e, None)
    assert shown.forgetting is not None
    [item] = shown.forgetting.flips
    assert (item.before, item.after, len(item.prompt)) == ("right", "wrong", 400)


def test_whole_numbers_of_an_event_stay_whole() -> None:
    event = pb.RunEvent(level="warn", message="Rows were cut.")
    told = {"rows": [1, 2], "share": 0.5, "by_file": {"training_file": 2, "others": None}}
    ParseDict(told, event.data)

    assert json.dumps(reports.run_event(event).data, sort_keys=True) == json.dumps(told, sort_keys=True)


def test_an_evaluation_of_an_earlier_release_is_shown() -> None:
    score = {"loss": 1.0, "token_accuracy": 0.5, "exact_match": 0.0}
    old = {"rows": 1, "held_out_from_training": True, "base": score, "tuned": score}

    shown = Evaluation(**old, flipped_to_right=0, flipped_to_wrong=0)

    assert (shown.flips, shown.forgetting, shown.base.perplexity) == ([], None, None)
