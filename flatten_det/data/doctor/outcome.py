"""What the examination of one image brings."""

from dataclasses import dataclass, field

from .findings import Finding


@dataclass
class Outcome:
    """What the examination of one image brings.

    Attributes:
        findings: what is wrong.
        labels: of a semantic label map, as a training sees them.
    """

    findings: list[Finding]
    labels: set[int] = field(default_factory=set)
