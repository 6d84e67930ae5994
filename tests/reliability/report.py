"""What was checked: one table row each, printed as it comes, and the whole as Markdown."""

import time
from dataclasses import dataclass, field


@dataclass
class Row:
    """One check. `passed` is None where a figure is only printed and not judged."""

    what: str
    wanted: str
    got: str
    passed: bool | None

    def verdict(self):
        return {True: "pass", False: "FAIL", None: "-"}[self.passed]

    def line(self):
        cells = (self.what, self.wanted, self.got, self.verdict())
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


@dataclass
class Report:
    """Collects rows. Figures that depend on time are judged only where `judges_time` is set: a quick run on a busy
    machine prints them."""

    judges_time: bool
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    HEADER = "| what | wanted | got | |\n|---|---|---|---|"

    def check(self, what, wanted, got, passed):
        """Adds a row that counts."""
        self._add(Row(what, wanted, str(got), bool(passed)))

    def timing(self, what, wanted, got, passed):
        """Adds a row that counts where times are judged."""
        self._add(Row(what, wanted, str(got), bool(passed) if self.judges_time else None))

    def note(self, what, got):
        """Adds a figure that nothing is asked of."""
        self._add(Row(what, "", str(got), None))

    def failed(self):
        return [row for row in self.rows if row.passed is False]

    def markdown(self, title):
        return "\n".join([title, "", self.HEADER, *(row.line() for row in self.rows), ""])

    def _add(self, row):
        if not self.rows:
            print(self.HEADER, flush=True)
        self.rows.append(row)
        print(row.line(), flush=True)
