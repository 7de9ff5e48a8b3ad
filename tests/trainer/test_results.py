"""What leaves of an evaluation: counts of all flips, the first hundred by line, and what was forgotten."""

from tests.support import tiny_model
from tunesmith_trainer.evaluation import Measured, RowScore
from tunesmith_trainer.guard_set import guard_items
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.results import wire_evaluation


def scores(rows: range, *, right: bool) -> list[RowScore]:
    return [RowScore(row, 0.5, int(right), 1) for row in rows]


def test_flips_are_counted_all_and_listed_up_to_a_hundred() -> None:
    before = Measured(0, scores(range(200, 0, -1), right=False), [])
    after = Measured(9, scores(range(200, 0, -1), right=True), [])

    told = wire_evaluation(before, after, [], "supervised", held_out_from_training=True)

    assert (told.rows, told.flipped_to_right, told.flipped_to_wrong) == (200, 200, 0)
    assert [(flip.row, flip.right) for flip in told.flips] == [(row, True) for row in range(1, 101)]
    assert not told.HasField("forgetting")


def test_a_forgotten_question_is_told_in_words() -> None:
    items = guard_items(Renderer(tiny_model.tokenizer(), [2]), 512)[:2]
    rows = scores(range(1, 2), right=True)
    before = Measured(0, rows, scores(range(1, 3), right=True))
    after = Measured(9, rows, [RowScore(1, 0.5, 1, 1), RowScore(2, 2.0, 0, 1)])

    told = wire_evaluation(before, after, items, "supervised", held_out_from_training=False).forgetting

    assert (told.items, told.base.exact_match, told.tuned.exact_match) == (2, 1.0, 0.5)
    assert [(flip.topic, flip.prompt, flip.right) for flip in told.flips] == [("arithmetic", items[1].prompt, False)]
