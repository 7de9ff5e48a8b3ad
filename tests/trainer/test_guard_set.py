"""The questions of general knowledge: of every kind, short, and asked as the base model is asked."""

from collections import Counter

from tests.support import tiny_model
from tunesmith_trainer.guard_set import examples_of, guard_items
from tunesmith_trainer.rendering import Renderer


def test_every_topic_has_eight_short_questions() -> None:
    items = guard_items(Renderer(tiny_model.tokenizer(), [2]), 512)

    topics = Counter(item.topic for item in items)
    assert topics == dict.fromkeys(("arithmetic", "geography", "grammar", "translation", "code"), 8)
    assert len({item.prompt for item in items}) == len(items)
    assert max(int(example.labelled.sum()) for example in examples_of(items)) < 30
    said = tiny_model.tokenizer().decode([int(token) for token in items[0].example.token_ids])
    assert said.endswith("Answer with the number only.<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n")


def test_a_base_without_a_template_reads_question_and_answer_on_two_lines() -> None:
    item = guard_items(Renderer(tiny_model.tokenizer(chat_template=None), [2]), 512)[0]

    assert "only.\n5" in tiny_model.tokenizer().decode([int(token) for token in item.example.token_ids])


def test_questions_that_do_not_fit_are_left_out() -> None:
    renderer = Renderer(tiny_model.tokenizer(), [2])
    longest = max(len(item.example.token_ids) for item in guard_items(renderer, 512))

    assert 0 < len(guard_items(renderer, longest - 1)) < 40
