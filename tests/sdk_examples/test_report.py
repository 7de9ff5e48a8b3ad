"""The report is one whole page, and nothing that it shows can break out of its place."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from examples.report import CurvePoint, Report, Setting, render, write_report
from examples.scoring import Comparison
from tunesmith.types import FineTune

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)> & \"quoted\" 'single' $title ${curve} \x00"
TICKET = '{"intent":"refund","order":null,"product":"kettle","urgent":true}'
VOID = {"meta", "wbr"}


def job(**changes: object) -> FineTune:
    return FineTune.model_validate(
        {
            "id": "ftjob-1",
            "created_at": 1,
            "model": "smollm2-135m-instruct",
            "fine_tuned_model": "ft:smollm2-135m-instruct:default:tickets:abcd1234",
            "status": "succeeded",
            "training_file": "file-1",
            "evaluation": {
                "rows": 100,
                "base": {"loss": 3.2, "token_accuracy": 0.41, "exact_match": 0.0},
                "tuned": {"loss": 0.08, "token_accuracy": 0.97, "exact_match": 0.71},
                "flipped_to_right": 71,
                "flipped_to_wrong": 0,
            },
            **changes,
        }
    )


@pytest.fixture
def report() -> Report:
    return Report(
        job=job(),
        training_rows=480,
        curve=[CurvePoint(step, 3.0 / step, 2.5 / step if step % 5 == 0 else None) for step in range(1, 61)],
        settings=[Setting("batch_size", "8", "at least fifty steps")],
        comparisons=[Comparison("kettle broke, money back today", TICKET, "I am sorry", TICKET)],
        served_base=0.0,
        served_tuned=0.725,
        timings=[("Start the platform", 12.3), ("Fine-tune", 201.0)],
        home=".quickstart/home",
    )


def test_the_page_shows_figures_curve_settings_rows_and_timings(report: Report) -> None:
    page = render(report)
    for part in ("72%", "71%", "3.200", "0.080", "<svg", "at least fifty steps", "kettle broke", "Fine-tune", "201"):
        assert part in page
    assert "71 rows turned right, 0 turned wrong" in page


def test_the_page_loads_nothing_and_runs_nothing(report: Report) -> None:
    page = Elements(render(report))
    assert not {"script", "link", "img", "iframe", "object"} & {name for name, _ in page.opened}
    names = {attribute for _, attributes in page.opened for attribute in attributes}
    assert not {"src", "href"} & names
    assert not any(name.startswith("on") for name in names)


def test_hostile_text_stays_text(report: Report) -> None:
    hostile = replace(
        report,
        job=job(model=HOSTILE, fine_tuned_model=HOSTILE, id=HOSTILE),
        settings=[Setting(HOSTILE, HOSTILE, HOSTILE)],
        comparisons=[Comparison(HOSTILE, HOSTILE, HOSTILE + "x", "y" + HOSTILE)],
        timings=[(HOSTILE, 1.0)],
        home=HOSTILE,
    )
    honest, page = Elements(render(report)), Elements(render(hostile))
    assert {name for name, _ in page.opened} <= {name for name, _ in honest.opened} | {"mark"}
    assert page.text.count("alert(1)") >= 10
    assert "$title" in page.text


def test_only_the_differing_part_of_a_near_miss_is_marked(report: Report) -> None:
    wrong = TICKET.replace("kettle", "tea kettle")
    page = render(replace(report, comparisons=[Comparison("m", TICKET, "", wrong)]))
    assert '"<mark>tea </mark>kettle"'.replace('"', "&quot;") in page
    assert "(empty)" in page


def test_a_job_without_evaluation_or_steps_still_has_a_page(report: Report) -> None:
    page = render(replace(report, job=job(evaluation=None), curve=[], comparisons=[]))
    assert "The job reported no steps." in page


@pytest.mark.parametrize("losses", [[0.0, 0.0], [5e-7], [12345.0, 0.1]])
def test_any_losses_can_be_drawn(report: Report, losses: list[float]) -> None:
    page = render(replace(report, curve=[CurvePoint(i + 1, loss) for i, loss in enumerate(losses)]))
    assert "nan" not in page
    assert page.count("<polyline") == 3


def test_the_page_is_well_formed_and_replaces_an_older_one(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "report.html"
    for _ in range(2):
        write_report(report, path)
    assert Elements(path.read_text(encoding="utf-8")).open == []


class Elements(HTMLParser):
    """The elements of a page; checks that they close in the order in which they opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, list[str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, [name for name, _ in attrs]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
