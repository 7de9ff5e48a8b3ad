"""What the quickstart adds to a job's report stays in its place, and the page stays one whole page."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from examples.report import Served, with_served
from examples.scoring import Comparison
from tests.server.fine_tunes.test_reports import finished
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.fine_tunes.reports import ReportsService

PAGE = "<html><head><title>t</title></head><body><main><p>the job</p></main></body></html>"
HOSTILE = "</td></main></head><script>alert(1)</script><img src=x onerror=alert(1)> & \"quoted\" 'single' \x00"
TICKET = '{"intent":"refund","order":null,"product":"kettle","urgent":true}'
VOID = {"meta", "wbr"}


@pytest.fixture
def served() -> Served:
    return Served(
        model="ft:smollm2-135m-instruct:default:tickets:abcd1234",
        comparisons=[Comparison("kettle broke, money back today", TICKET, "I am sorry", TICKET)],
        base=0.0,
        tuned=0.725,
        timings=[("Start the platform", 12.3), ("Fine-tune", 201.0)],
        home=".quickstart/home",
    )


async def test_the_servers_report_gets_rows_before_and_after(platform: Platform, served: Served) -> None:
    report = await ReportsService(platform.core).html(PRINCIPAL, await finished(platform))
    page = with_served(report, served)

    for part in ("<polyline", "exact match", "50 &lt; 100 steps", "0% →</span> 72%", "kettle broke", "201", "curl"):
        assert part in page
    assert page.index("What the validation found") < page.index("Before and after, as served") < page.index("</main>")
    whole = Elements(page)
    assert whole.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {name for name, _ in whole.opened}
    names = {attribute for _, attributes in whole.opened for attribute in attributes}
    assert not {"src", "href"} & names
    assert not any(name.startswith("on") for name in names)


def test_hostile_text_stays_text(served: Served) -> None:
    hostile = replace(
        served,
        model=HOSTILE,
        comparisons=[Comparison(HOSTILE, HOSTILE, HOSTILE + "x", "y" + HOSTILE)],
        timings=[(HOSTILE, 1.0)],
        home=HOSTILE,
    )
    honest, page = Elements(with_served(PAGE, served)), Elements(with_served(PAGE, hostile))
    assert page.open == []
    assert {name for name, _ in page.opened} <= {name for name, _ in honest.opened} | {"mark"}
    assert page.text.count("alert(1)") >= 7


def test_only_the_differing_part_of_a_near_miss_is_marked(served: Served) -> None:
    wrong = TICKET.replace("kettle", "tea kettle")
    page = with_served(PAGE, replace(served, comparisons=[Comparison("m", TICKET, "", wrong)]))
    assert '"<mark>tea </mark>kettle"'.replace('"', "&quot;") in page
    assert "(empty)" in page


def test_without_rows_the_page_still_says_how_to_go_on(served: Served) -> None:
    assert "Start the platform again" in with_served(PAGE, replace(served, comparisons=[]))


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
