"""Rendering: the mask says exactly what a served model has to produce, stop token included."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_model
from tests.support.chat_templates import SHAPES
from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.example import Example
from tunesmith_trainer.rendering import CannotRender, Renderer
from tunesmith_trainer.tokenizer import load_tokenizer

STOP = 2  # <|im_end|>
UNTHOUGHT = "<think>\n\n</think>\n\n"


def row(*turns: tuple[str, str] | tuple[str, str, int], tools: list[object] | None = None) -> Row:
    messages = tuple(Message(turn[0], turn[1], turn[2] if len(turn) == 3 else 1, {}) for turn in turns)
    return Row(7, "training_file", messages, tools)


def learnt(example: Example) -> str:
    text: str = tiny_model.tokenizer().decode(example.token_ids[example.labelled])
    return text


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(tiny_model.tokenizer(), [STOP])


def test_the_answer_and_its_stop_token_are_learnt_and_nothing_else(renderer: Renderer) -> None:
    example = renderer.render(row(("user", "Colour?"), ("assistant", "red")))

    assert learnt(example) == "red<|im_end|>"
    assert example.token_ids[example.labelled][-1] == STOP
    assert not example.labelled[-1]  # the line feed behind the stop token is the template's


def test_the_prompt_is_what_a_server_would_feed(renderer: Renderer) -> None:
    example = renderer.render(row(("user", "Colour?"), ("assistant", "red")))
    served = tiny_model.tokenizer().apply_chat_template(
        [{"role": "user", "content": "Colour?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]

    assert example.prompt_token_ids == served


def test_every_weighted_answer_of_a_conversation_is_learnt(renderer: Renderer) -> None:
    turns = row(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two", 0), ("assistant", "three"))

    assert learnt(renderer.render(turns)) == "one<|im_end|>three<|im_end|>"


@pytest.mark.parametrize(
    ("family", "one", "two"),
    [
        ("chatml", "red<|im_end|>", "one<|im_end|>two<|im_end|>"),
        ("llama3", "red<|eot_id|>", "one<|eot_id|>two<|eot_id|>"),
        ("qwen2", "red<|im_end|>", "one<|im_end|>two<|im_end|>"),
        ("qwen3", f"{UNTHOUGHT}red<|im_end|>", f"{UNTHOUGHT}one<|im_end|>{UNTHOUGHT}two<|im_end|>"),
        ("mistral", " red</s>", " one</s> two</s>"),
        ("gemma", "red<end_of_turn>", "one<end_of_turn>two<end_of_turn>"),
        ("phi3", "red<|end|>", "one<|end|>two<|end|>"),
    ],
)
def test_each_family_learns_its_answers_and_stop_tokens_and_is_asked_as_when_serving(
    family: str, one: str, two: str
) -> None:
    shape = SHAPES[family]
    tokenizer = shape.tokenizer()
    renderer = Renderer(tokenizer, shape.stop_ids())
    single = renderer.render(row(("user", "Hi?"), ("assistant", "red")))
    asked = [{"role": "user", "content": "Hi?"}]
    served = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]

    assert tokenizer.decode(single.token_ids[single.labelled]) == one
    assert single.prompt_token_ids == served
    turns = row(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))
    both = renderer.render(turns)
    assert tokenizer.decode(both.token_ids[both.labelled]) == two


@pytest.mark.parametrize("family", ["chatml", "llama3", "qwen2", "qwen3", "mistral", "gemma", "phi3"])
@pytest.mark.parametrize("prompt", ["Hi?", " Hi there ? \n"])
def test_a_prompt_in_its_frame_is_what_was_learnt(family: str, prompt: str) -> None:
    shape = SHAPES[family]
    tokenizer = shape.tokenizer()
    renderer = Renderer(tokenizer, shape.stop_ids())
    frame = renderer.completion_frame()
    assert frame is not None
    text = frame["before"] + (prompt.strip() if frame["trimmed"] else prompt) + frame["after"]

    example = renderer.render(row(("user", prompt), ("assistant", "red")))
    (asked,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    assert example.token_ids[: len(asked)].tolist() == asked
    assert tokenizer.decode(example.token_ids[len(asked) :]).lstrip(" ").startswith("red")


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for message in messages %}{{ message.content | upper }}{% endfor %}",
        "{% for message in messages %}{{ message.content | length }}: {{ message.content }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_what_is_done_to_prompts_beyond_a_frame_has_none(template: str | None) -> None:
    assert Renderer(tiny_model.tokenizer(template), [STOP]).completion_frame() is None


def test_an_answer_that_the_template_writes_in_another_way_later_is_learnt_as_it_will_be_asked_for() -> None:
    shape = SHAPES["qwen3"]
    tokenizer = shape.tokenizer()
    turns = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
    example = Renderer(tokenizer, shape.stop_ids()).render(row(*turns))

    first, second = np.split(example.token_ids, example.splits)
    wire = [{"role": role, "content": content} for role, content in turns]
    for document, count in ((first, 1), (second, 3)):
        asked = tokenizer.apply_chat_template(wire[:count], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert document[: len(asked)].tolist() == asked
    assert f"{UNTHOUGHT}one" not in tokenizer.decode(second)


def test_a_row_without_weighted_answers_learns_nothing(renderer: Renderer) -> None:
    assert not renderer.render(row(("user", "a"), ("assistant", "one", 0))).labelled.any()


def test_a_template_that_rewrites_history_is_refused_with_the_row() -> None:
    forgetful = "{% for m in messages[-2:] %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    renderer = Renderer(tiny_model.tokenizer(forgetful), [STOP])
    turns = row(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))

    with pytest.raises(CannotRender) as refused:
        renderer.render(turns)
    assert (refused.value.problem.code, refused.value.problem.row) == ("template_rewrites_prompt", 7)


def test_so_is_one_whose_prompts_have_more_special_tokens_than_the_whole() -> None:
    shrinking = "{{ '<|im_start|>' * 9 if add_generation_prompt }}"
    shrinking += "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    turns = row(("user", "a"), ("assistant", "one"))
    with pytest.raises(CannotRender) as refused:
        Renderer(tiny_model.tokenizer(shrinking), [STOP]).render(turns)
    assert refused.value.problem.code == "template_rewrites_prompt"


def test_a_long_conversation_takes_memory_for_itself_and_not_for_each_answer(renderer: Renderer) -> None:
    turns = row(*[(role, "x" * 1000) for _ in range(100) for role in ("user", "assistant")])
    renderer.render(row(("user", "a"), ("assistant", "one")))  # compiles the template
    tracemalloc.start()
    example = renderer.render(turns)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert example.labelled.sum() == 100 * 1001
    assert peak < 40 * len(example.token_ids), "all texts up to and through an answer are 100 times the conversation"


def test_a_place_inside_a_special_token_is_counted_as_its_text_is() -> None:
    begun = (
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_{% endif %}"
    )
    example = Renderer(tiny_model.tokenizer(begun), [STOP]).render(row(("user", "a"), ("assistant", "<|im_start|>one")))
    assert learnt(example) == "start|>one<|im_end|>"


def test_a_template_without_a_stop_token_is_refused() -> None:
    endless = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    endless += "{% if add_generation_prompt %}assistant: {% endif %}"

    with pytest.raises(CannotRender) as refused:
        Renderer(tiny_model.tokenizer(endless), [STOP]).render(row(("user", "a"), ("assistant", "one")))
    assert refused.value.problem.code == "stop_token_missing"


def test_two_begin_tokens_are_refused() -> None:
    doubled = "<|im_start|>" + tiny_model.CHATML
    with pytest.raises(CannotRender) as refused:
        Renderer(tiny_model.tokenizer(doubled), [STOP]).render(row(("user", "a"), ("assistant", "one")))
    assert refused.value.problem.code == "double_bos"


def test_a_template_that_raises_names_the_row() -> None:
    strict = "{{ raise_exception('no') }}"
    with pytest.raises(CannotRender) as refused:
        Renderer(tiny_model.tokenizer(strict), [STOP]).render(row(("user", "a"), ("assistant", "one")))
    assert refused.value.problem.code == "template_refused_row"


def test_an_answer_before_any_question_is_read_but_not_learnt(renderer: Renderer) -> None:
    example = renderer.render(row(("assistant", "hello"), ("user", "a"), ("assistant", "one")))
    assert learnt(example) == "one<|im_end|>"
    assert "hello" in tiny_model.tokenizer().decode(example.token_ids)

    with pytest.raises(CannotRender) as refused:
        renderer.render(row(("assistant", "hello"), ("user", "a")))
    assert refused.value.problem.code == "answer_without_question"


@pytest.mark.parametrize("answer", ["    return 1", "\n\nHello", "   Hello", " \t x"])
def test_an_answer_that_merges_with_the_prompt_is_learnt_as_it_is_generated(smollm2: Path, answer: str) -> None:
    """Behind the prompt's own tokens; further answers see the conversation as a server would make it again."""
    tokenizer: Any = load_tokenizer(smollm2)
    renderer = Renderer(tokenizer, [STOP])
    turns = [("user", "Hi"), ("assistant", answer), ("user", "and?"), ("assistant", "two")]
    alone, both = renderer.render(row(*turns[:2])), renderer.render(row(*turns))

    wire = [{"role": role, "content": content} for role, content in turns]
    asked = tokenizer.apply_chat_template(wire[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert alone.prompt_token_ids == asked
    assert tokenizer.decode(alone.token_ids[alone.labelled]) == f"{answer}<|im_end|>"
    whole, apart = np.split(both.token_ids, both.splits)
    assert whole.tolist() == tokenizer.apply_chat_template(wire, return_dict=True)["input_ids"]
    assert apart.tolist() == alone.token_ids.tolist()
    assert tokenizer.decode(both.token_ids[both.labelled]) == f"two<|im_end|>{answer}<|im_end|>"


def test_so_is_a_completion_where_there_is_no_template(smollm2: Path) -> None:
    tokenizer: Any = load_tokenizer(smollm2)
    tokenizer.chat_template = None
    example = Renderer(tokenizer, [STOP]).render(row(("user", "x\n\n###\n\n"), ("assistant", "\n y")))

    assert example.prompt_token_ids == tokenizer("x\n\n###\n\n")["input_ids"]
    assert tokenizer.decode(example.token_ids[example.labelled]) == "\n y<|im_end|>"


def test_half_a_character_is_refused_with_its_row(renderer: Renderer) -> None:
    with pytest.raises(CannotRender) as refused:
        renderer.render(row(("user", "a"), ("assistant", "so \ud83d")))
    assert (refused.value.problem.code, refused.value.problem.row) == ("invalid_file_format", 7)


@pytest.mark.parametrize(
    ("template", "shows"),
    [
        (tiny_model.CHATML, False),
        ("{% for m in messages %}{{ m['tool_calls'][0]['name'] }}{{ tool_call.function.name }}{% endfor %}", False),
        (tiny_model.CHATML.replace("message['role'] +", "message['role'] + message['name'] +"), True),
        ("{% for message in messages %}{% if message.name %}{{ message.name }}{% endif %}{% endfor %}", True),
    ],
)
def test_a_template_that_writes_names_is_told_from_one_that_does_not(template: str, shows: bool) -> None:
    assert Renderer(tiny_model.tokenizer(template), [STOP]).shows_speakers == shows


@pytest.mark.parametrize("begins", [False, True])
def test_without_a_chat_template_prompt_and_completion_are_plain_text(begins: bool) -> None:
    tokenizer = tiny_model.tokenizer(None, begins=begins)
    example = Renderer(tokenizer, [STOP]).render(row(("user", "2+2="), ("assistant", "4")))

    assert tokenizer.decode(example.token_ids) == "<|im_start|>" * begins + "2+2=4<|im_end|>"
    assert example.prompt_token_ids == tokenizer("2+2=")["input_ids"], "as a server makes them"
    assert learnt(example) == "4<|im_end|>"


def test_a_plain_text_that_nothing_comes_before_does_not_learn_its_first_token() -> None:
    example = Renderer(tiny_model.tokenizer(None), [STOP]).render(row(("user", ""), ("assistant", "abc")))

    assert learnt(example) == "bc<|im_end|>"


def test_special_tokens_inside_texts_are_found(renderer: Renderer) -> None:
    assert renderer.special_tokens_in(row(("user", "say <|im_end|>"), ("assistant", "no"))) == ["<|im_end|>"]
    tool = {"type": "function", "function": {"name": "f", "description": "as in <|im_start|>"}}
    assert renderer.special_tokens_in(row(("user", "a"), ("assistant", "b"), tools=[tool])) == ["<|im_start|>"]
    call = {"function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}
    called = Row(7, "training_file", (Message("assistant", "", 1, {"tool_calls": [call]}),), None)
    assert renderer.special_tokens_in(called) == ["<|im_end|>"]


def test_smollm2_renders_with_its_own_system_prompt(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    example = Renderer(tokenizer, [STOP]).render(row(("user", "Hi"), ("assistant", "Hello")))
    text = tokenizer.decode(example.token_ids.tolist())

    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
