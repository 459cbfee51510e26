"""What the benchmark finds out about one model in one setting."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..memory import Peak
from ..timing import Timing
from .cost import Cost
from .settings import Setting, Size


@dataclass(frozen=True)
class Result:
    """One cell.

    Attributes:
        setting: size, mode, dtype, batch.
        name: of the candidate.
        cost: multiply-adds and parameters.
        timing: None if it did not run to the end.
        peak: None if memory was not measured.
        failure: why there are no times.
        host_seconds: until a call on a GPU returns, its work launched; None elsewhere.
    """

    setting: Setting
    name: str
    cost: Cost
    timing: Timing | None = None
    peak: Peak | None = None
    failure: str | None = None
    host_seconds: float | None = None

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.setting.size.pixels

    @property
    def seconds(self) -> float | None:
        """The median time of a call."""
        return self.timing.median if self.timing else None

    @property
    def images_per_second(self) -> float | None:
        return self.setting.batch / self.timing.median if self.timing else None

    @property
    def megapixels_per_second(self) -> float | None:
        return self.images_per_second * self.pixels / 1e6 if self.timing else None

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of a call, beyond weights and images."""
        return self.peak.bytes if self.peak else None

    @property
    def macs(self) -> int | None:
        """Multiply-adds for one image."""
        return self.cost.macs

    @property
    def note(self) -> str:
        """What a reader must know beside the figures, or nothing."""
        remarks = [self.failure]
        if self.peak is not None and self.peak.failure != self.failure:
            remarks.append(self.peak.failure and f"memory: {self.peak.failure}")
        remarks.append(self.cost.note)
        return "; ".join(filter(None, remarks))

    def record(self) -> dict[str, object]:
        """Everything, for a JSON file."""
        return {
            "setting": {**asdict(self.setting), "size": self.setting.size.hw},
            "name": self.name,
            "cost": asdict(self.cost),
            "seconds": list(self.timing.seconds) if self.timing else None,
            "peak": asdict(self.peak) if self.peak else None,
            "failure": self.failure,
            "host_seconds": self.host_seconds,
        }

    @classmethod
    def from_record(cls, record: Mapping) -> "Result":
        """The inverse of :meth:`record`.

        Raises:
            KeyError, TypeError, ValueError: if it is not one.
        """
        seconds, peak = record["seconds"], record["peak"]
        return cls(
            Setting(**{**record["setting"], "size": Size(*record["setting"]["size"])}),
            record["name"],
            Cost(**record["cost"]),
            Timing(tuple(seconds)) if seconds else None,
            Peak(**peak) if peak else None,
            record["failure"],
            record.get("host_seconds"),
        )
