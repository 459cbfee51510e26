"""What the benchmark finds out about one candidate in one setting."""

from dataclasses import dataclass

from ..memory import Peak
from ..timing import Timing, paired_speedup
from .candidates import OTHER_FUNCTIONS
from .cases import Setting
from .check import Check


@dataclass(frozen=True)
class Result:
    """One cell.

    Attributes:
        setting: shape, level, mode, dtype, batch.
        candidate: its name.
        timing: None if it did not run to the end.
        baseline: times of the baseline in the same rounds; None if that failed.
        check: None for another function, and for what did not run.
        peak: None if memory was not measured.
        bandwidth: of a copy on this machine, bytes per second.
        failure: why there are no times.
    """

    setting: Setting
    candidate: str
    timing: Timing | None
    baseline: Timing | None
    check: Check | None
    peak: Peak | None
    bandwidth: float
    failure: str | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether its time is that of the right function, or of one that is known to be another."""
        return self.candidate in OTHER_FUNCTIONS or (self.check is not None and self.check.passed)

    @property
    def speedup(self) -> float | None:
        """Over the baseline; None if the check failed.

        The baseline may have failed its own: the plain code loses its gradients' digits in pure bf16.
        """
        if self.timing is None or self.baseline is None or not self.is_trusted:
            return None
        return paired_speedup(self.baseline, self.timing)

    @property
    def floor_fraction(self) -> float | None:
        """Bytes that must move / time / copy bandwidth.

        Above 1 where the tensors fit into a cache, which a large copy does not.
        """
        floor = self.setting.floor_bytes
        if floor is None or self.timing is None or self.check is None or not self.check.passed:
            return None
        return floor / self.timing.median / self.bandwidth

    @property
    def peak_mib(self) -> float | None:
        """Peak memory in MiB."""
        if self.peak is None or self.peak.bytes is None:
            return None
        return self.peak.bytes / 2**20

    @property
    def peak_units(self) -> float | None:
        """Peak memory in tensors (B, N, C) of the setting's dtype."""
        if self.peak is None or self.peak.bytes is None:
            return None
        return self.peak.bytes / self.setting.unit

    @property
    def verdict(self) -> str:
        """Of the check, in a word or two."""
        if self.candidate in OTHER_FUNCTIONS:
            return "other function"
        if self.check is None or self.check.failure is not None:
            return "not checked"
        return "passed" if self.check.passed else "failed"

    @property
    def note(self) -> str:
        """What a reader must know beside the figures, or nothing."""
        failed = self.failure or (self.check.failure if self.check else None)
        if failed:
            return failed
        remarks = []
        if self.verdict == "other function":
            remarks.append(self.verdict)
        if self.verdict == "failed":
            remarks.append(f"wrong: {self.check.worst}; no speed-up")
        if self.peak is not None and self.peak.failure:
            remarks.append(f"memory: {self.peak.failure}")
        return "; ".join(remarks)

    def row(self) -> dict[str, object]:
        """Flat, for a CSV file; None where there is nothing."""
        case, timing, check = self.setting.case, self.timing, self.check
        first, third = timing.quartiles if timing else (None, None)
        return {
            "level": self.setting.level,
            "shape": case.name,
            "channels": case.channels,
            "heads": case.heads,
            "height": case.height,
            "width": case.width,
            "batch": self.setting.batch,
            "dtype": self.setting.dtype,
            "amp": self.setting.amp,
            "mode": self.setting.mode,
            "candidate": self.candidate,
            "median_s": timing.median if timing else None,
            "first_quartile_s": first,
            "third_quartile_s": third,
            "speedup": self.speedup,
            "check": self.verdict,
            "relative_error": check.error if check else None,
            "worst_tensor": check.worst if check else None,
            "peak_bytes": self.peak.bytes if self.peak else None,
            "peak_units": self.peak_units,
            "floor_fraction": self.floor_fraction,
            "note": self.note,
        }

    def record(self) -> dict[str, object]:
        """For a JSON file: the row, and the times of all rounds."""
        return {**self.row(), "seconds": list(self.timing.seconds) if self.timing else []}
