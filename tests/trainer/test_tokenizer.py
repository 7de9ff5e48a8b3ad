"""A template that writes the date writes the job's, whenever its run goes on."""

from datetime import date
from pathlib import Path

import pytest

from tests.support import tiny_model
from tunesmith_trainer.tokenizer import load_tokenizer

ASKED = [{"role": "user", "content": "a"}]
LLAMAS = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}Today Date: {{ date_string }}\n"
)


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        (LLAMAS, "Today Date: 05 Mar 2026\n"),
        ("{{- strftime_now('%A, %-d. %B %Y (%Y-%m-%d)') }}|", "Thursday, 5. March 2026 (2026-03-05)|"),
        ("{{ strftime_now('%H:%M') }} ", "00:00 "),
    ],
)
def test_a_template_is_told_the_day(tmp_path: Path, asks: str, told: str) -> None:
    tiny_model.tokenizer(asks + tiny_model.CHATML).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, date(2026, 3, 5))

    assert tokenizer.apply_chat_template(ASKED, tokenize=False).startswith(told + "<|im_start|>")


@pytest.mark.parametrize("day", [None, date(2026, 3, 5)])
def test_one_that_does_not_ask_stays_as_it_is(tmp_path: Path, day: date | None) -> None:
    tiny_model.tokenizer().save_pretrained(tmp_path)

    assert load_tokenizer(tmp_path, day).chat_template == tiny_model.CHATML
