"""Templates: looked up, never executed, never longer than the bound."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith_server.graders.templates import (
    MAX_RENDERED,
    Sample,
    SampleNotJsonError,
    TextTooLongError,
    UnknownVariableError,
    check,
    render,
)

ITEM: dict[str, Any] = {
    "answer": "Paris",
    "number": 4,
    "flag": True,
    "nothing": None,
    "parts": ["a", {"b": "c"}],
    "deep": {"er": {"est": "x"}},
    "0": "zero",
    "größe": "ü",
}
SAMPLE = Sample('{"city": "Paris", "list": [1, 2]}')


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain { text }", "plain { text }"),
        ("{{item.answer}}", "Paris"),
        ("<{{ item.answer }}>", "<Paris>"),
        ("{{item.number}} {{item.flag}} {{item.nothing}}", "4 true null"),
        ("{{item.parts[0]}} {{item.parts.1.b}} {{item.parts[1].b}}", "a c c"),
        ("{{item.parts}}", '["a", {"b": "c"}]'),
        ("{{item.deep.er.est}}", "x"),
        ("{{item.0}} {{item.größe}}", "zero ü"),
        ("{{sample.output_json.city}} {{sample.output_json.list[1]}}", "Paris 2"),
        ("{{sample.output_json}}", '{"city": "Paris", "list": [1, 2]}'),
        ("{{{item.answer}}}", "{Paris}"),
    ],
)
def test_variables_are_replaced(template: str, text: str) -> None:
    check(template)
    assert render(template, ITEM, SAMPLE) == text


def test_what_a_value_says_is_not_read_as_a_template() -> None:
    assert render("{{item.x}}", {"x": "{{item.x}}"}, SAMPLE) == "{{item.x}}"


@pytest.mark.parametrize(
    "template",
    [
        "{{}}",
        "{{ }}",
        "{{item}}",
        "{{sample}}",
        "{{item.}}",
        "{{item..answer}}",
        "{{items.answer}}",
        "{{item.answer + 1}}",
        "{{sample.output_tools}}",
        "{{config.SECRET}}",
        "{{item[answer]}}",
    ],
)
def test_what_no_template_can_name_is_found_beforehand(template: str) -> None:
    with pytest.raises(UnknownVariableError):
        check(template)
    with pytest.raises(UnknownVariableError):
        render(template, ITEM, SAMPLE)


@pytest.mark.parametrize(
    "template",
    [
        "{{item.missing}}",
        "{{item.answer.x}}",
        "{{item.answer.0}}",
        "{{item.parts[9]}}",
        "{{item.parts.x}}",
        "{{item.number.real}}",
        "{{item.answer.__class__}}",
        "{{item.answer()}}",
        "{{item.parts.__len__}}",
        "{{sample.output_json.missing}}",
        "{{sample.output_text.x}}",
    ],
)
def test_what_is_not_there_is_an_error(template: str) -> None:
    check(template)
    with pytest.raises(UnknownVariableError):
        render(template, ITEM, SAMPLE)


@pytest.mark.parametrize("text", ["no json", "{", "[" * 100_000, "1" * 5000])
def test_a_sample_that_is_no_json_is_told_apart(text: str) -> None:
    assert render("{{sample.output_text}}", {}, Sample("hi")) == "hi"
    with pytest.raises(SampleNotJsonError):
        render("{{sample.output_json.x}}", {}, Sample(text))


def test_texts_have_a_bound() -> None:
    long = {"x": "a" * (MAX_RENDERED // 2)}
    assert len(render("{{item.x}}{{item.x}}", long, SAMPLE)) == MAX_RENDERED
    for template in ("{{item.x}}{{item.x}}.", "{{item.x}}" * 5000, "." * (MAX_RENDERED + 1)):
        with pytest.raises(TextTooLongError):
            render(template, long, SAMPLE)


def test_a_sample_is_read_as_json_once() -> None:
    sample = Sample(json.dumps({"x": "", "rest": "a" * 900_000}))
    started = time.perf_counter()

    assert render("{{sample.output_json.x}}" * 4000, {}, sample) == ""
    assert time.perf_counter() - started < 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
PIECES = st.sampled_from(
    ["{{", "}}", "{", "}", "item", "sample", ".", "x", "[0]", "output_text", "output_json", " ", "ü"]
)


@given(st.lists(PIECES, max_size=12).map("".join), JSON, st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_template_does_more_than_fail(template: str, value: Any, sample: str) -> None:
    try:
        assert len(render(template, {"x": value}, Sample(sample))) <= MAX_RENDERED
    except (UnknownVariableError, SampleNotJsonError, TextTooLongError):
        return


@given(st.from_regex(r"[A-Za-zäöü_][\w-]{0,20}", fullmatch=True), JSON)
@settings(max_examples=50, deadline=None)
def test_every_field_of_an_item_can_be_read(name: str, value: Any) -> None:
    text = render(f"{{{{item.{name}}}}}", {name: value}, SAMPLE)

    assert text == (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
