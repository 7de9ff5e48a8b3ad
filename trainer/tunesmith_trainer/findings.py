"""Owns what a preflight has to say: each finding told once with its rows, and the rows that are not used as they are.
Must not know what is checked, nor how findings travel."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith_trainer.errors import Problem

Severity = Literal["error", "warning"]
Action = Literal["refused", "cut", "dropped"]

_ROWS_LISTED = 20
_ROWS_NAMED = 10
_FILES = ("training_file", "validation_file")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the job. `rows` are the first of `count` 1-based lines of the file that `param` names."""

    code: str
    message: str
    severity: Severity
    param: str | None
    rows: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is refused, cut or dropped, by its 1-based `line` in the file that `param` names."""

    line: int
    param: str
    code: str
    message: str
    action: Action


class Findings:
    """Gathers findings. Memory is bounded by the number of rejected rows."""

    def __init__(self) -> None:
        self.rejects: list[Reject] = []
        self._groups: dict[tuple[str, str | None, Severity], _Group] = {}

    def add(self, problem: Problem, severity: Severity = "error") -> None:
        """Notes one thing, about one row or about no row in particular."""
        key = (problem.code, problem.param, severity)
        self._groups.setdefault(key, _Group(problem.message)).take(problem.row)

    def reject(self, problem: Problem, action: Action) -> None:
        """Notes a row that cannot be used as it is; a refused one is an error, the others are warnings."""
        self.add(problem, "error" if action == "refused" else "warning")
        if problem.row is not None and problem.param is not None:
            self.rejects.append(Reject(problem.row, problem.param, problem.code, problem.message, action))

    def extend(self, others: "Findings") -> None:
        """Takes over what others have gathered."""
        self.rejects += others.rejects
        for key, group in others._groups.items():
            self._groups.setdefault(key, _Group(group.message)).extend(group)

    def document(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        groups = [[*key, asdict(group)] for key, group in self._groups.items()]
        return {"groups": groups, "rejects": [asdict(reject) for reject in self.rejects]}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Findings":
        """What `document` gave. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls()
        made.rejects = [Reject(**reject) for reject in document["rejects"]]
        made._groups = {(code, param, severity): _Group(**group) for code, param, severity, group in document["groups"]}
        return made

    def rejected(self, action: Action) -> int:
        """How many rows met with `action`."""
        return sum(reject.action == action for reject in self.rejects)

    def listed(self) -> list[Finding]:
        """All findings: errors first, then by file and first row; those about no row come before those about rows."""
        found = [
            Finding(code, group.text(), severity, param, tuple(group.rows), group.count)
            for (code, param, severity), group in self._groups.items()
        ]
        return sorted(found, key=_order)

    def problems(self) -> tuple[Problem, ...]:
        """The errors, in the order of `listed`."""
        return tuple(problems_of(self.listed()))


def problems_of(findings: Iterable[Finding]) -> list[Problem]:
    """The errors among findings, each with its first row."""
    errors = (finding for finding in findings if finding.severity == "error")
    return [Problem(one.code, one.message, one.param, one.rows[0] if one.rows else None) for one in errors]


@dataclass(slots=True)
class _Group:
    message: str
    rows: list[int] = field(default_factory=list)
    count: int = 0

    def take(self, row: int | None) -> None:
        if row is None:
            return
        self.count += 1
        if len(self.rows) < _ROWS_LISTED:
            self.rows.append(row)

    def extend(self, other: "_Group") -> None:
        self.count += other.count
        self.rows += other.rows[: _ROWS_LISTED - len(self.rows)]

    def text(self) -> str:
        """The first row's message, and which rows are like it."""
        if self.count < 2:
            return self.message
        named = ", ".join(str(row) for row in self.rows[1 : 1 + _ROWS_NAMED])
        end = ", …" if self.count > 1 + _ROWS_NAMED else "."
        others = "1 more row" if self.count == 2 else f"{self.count - 1} more rows"
        return f"{self.message} The same holds for {others}: {named}{end}"


def _order(finding: Finding) -> tuple[bool, int, int]:
    place = _FILES.index(finding.param) if finding.param in _FILES else -1
    return finding.severity != "error", place, finding.rows[0] if finding.rows else 0
