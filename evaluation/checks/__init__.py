"""Checks of data, process and plan before training: each is a function in ``CHECKS``; a new one is an entry there."""

from dataclasses import asdict, dataclass
from typing import Any

from evaluation.checks.pixels import channels, constant_images, levels, mirroring, value_range
from evaluation.checks.process import draws_of_time, end_of_process, start_of_process
from evaluation.checks.samples import copies, labels, leakage, sizes, unreadable
from evaluation.checks.subject import Check, Finding, Plan, Row, Subject
from evaluation.checks.training import passes, sigma_data, warm_up

CHECKS: dict[str, Check] = {
    "unreadable": unreadable,
    "range": value_range,
    "channels": channels,
    "levels": levels,
    "constant_images": constant_images,
    "copies": copies,
    "leakage": leakage,
    "sizes": sizes,
    "labels": labels,
    "mirroring": mirroring,
    "end_of_process": end_of_process,
    "start_of_process": start_of_process,
    "draws_of_time": draws_of_time,
    "sigma_data": sigma_data,
    "warm_up": warm_up,
    "passes": passes,
}
"""Name -> check, in the order of the table; of findings equally grave the first comes first."""


@dataclass(frozen=True)
class Examination:
    """What all checks have to say.

    Attributes:
        rows: of the table.
        findings: (name of the check, finding), faults first.
    """

    rows: tuple[Row, ...]
    findings: tuple[tuple[str, Finding], ...]

    @property
    def faults(self) -> int:
        """Findings that spoil the training."""
        return sum(finding.fault for _, finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For a file that machines read."""
        return {
            "healthy": not self.faults,
            "measured": [asdict(row) for row in self.rows],
            "findings": [{"check": name, **asdict(finding)} for name, finding in self.findings],
        }


def examine(subject: Subject) -> Examination:
    """Let every check look at the subject."""
    told = [(name, item) for name, check in CHECKS.items() for item in check(subject)]
    findings = [(name, item) for name, item in told if isinstance(item, Finding)]
    rows = tuple(item for _, item in told if isinstance(item, Row))
    return Examination(rows, tuple(sorted(findings, key=lambda found: not found[1].fault)))


__all__ = ["CHECKS", "Check", "Examination", "Finding", "Plan", "Row", "Subject", "examine"]
