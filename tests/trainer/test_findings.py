"""Findings: one line each, however many rows, in an order that puts the cause of failure first."""

from tunesmith_trainer.errors import Problem
from tunesmith_trainer.findings import Findings


def problem(code: str, row: int | None, param: str = "training_file") -> Problem:
    return Problem(code, f"Row {row} is {code}.", param, row)


def test_rows_with_the_same_fault_are_one_finding() -> None:
    findings = Findings()
    for row in range(1, 101):
        findings.reject(problem("bad", row), "refused")
    (one,) = findings.listed()

    assert (one.count, one.rows) == (100, tuple(range(1, 21)))
    assert one.message == "Row 1 is bad. The same holds for 99 more rows: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"
    assert len(findings.rejects) == 100


def test_one_more_row_is_named_as_one() -> None:
    findings = Findings()
    for row in (31, 32):
        findings.add(problem("bad", row))

    assert [one.message for one in findings.listed()] == ["Row 31 is bad. The same holds for 1 more row: 32."]


def test_errors_come_first_and_what_is_about_no_row_before_rows() -> None:
    findings = Findings()
    findings.add(problem("odd", 1), "warning")
    findings.add(problem("late", 1, "validation_file"))
    findings.add(problem("early", 7))
    findings.add(Problem("few", "Too few.", "training_file"))

    assert [one.code for one in findings.listed()] == ["few", "early", "late", "odd"]
    assert [(one.code, one.row) for one in findings.problems()] == [("few", None), ("early", 7), ("late", 1)]


def test_cut_and_dropped_rows_are_warnings() -> None:
    findings = Findings()
    findings.reject(problem("cut", 1), "cut")
    findings.reject(problem("dropped", 2), "dropped")

    assert findings.problems() == ()
    assert (findings.rejected("cut"), findings.rejected("dropped"), findings.rejected("refused")) == (1, 1, 0)
