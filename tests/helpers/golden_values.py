"""Golden values of the original implementation: synthetic weights, one file a network and input."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class Golden:
    """The weights are a function of the parameter's name, so that no file has to hold them.

    Attributes:
        name: such as ``pvt_tiny_224``.
        record: ``params``, ``buffers``, ``input_shape``, and per stage samples of the output in float64.
    """

    name: str
    record: dict

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A checkpoint's weights and buffers, in the official names."""
        weights = {name: _weight(name, shape) for name, shape in self.record["params"].items()}
        buffers = {name: torch.zeros(shape) for name, shape in self.record["buffers"].items()}
        return weights | buffers

    def save(self, path: Path) -> Path:
        """Write a file as the official release has them: the weights under ``model``."""
        torch.save({"model": self.state_dict()}, path)
        return path

    def image(self) -> torch.Tensor:
        data = np.random.default_rng(0).standard_normal(self.record["input_shape"])
        return torch.from_numpy(data.astype(np.float32))


def _weight(name: str, shape: list[int]) -> torch.Tensor:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(as_trained(name, noise).astype(np.float32))


def as_trained(name: str, noise: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Normal noise at the size that training gives to a parameter of this name."""
    last = name.split(".")[-1]
    if last == "scale":
        return 0.5 * noise
    if last in ("positional_encoding", "relative_position_bias_table") or "pos_embed" in last:
        return 0.2 * noise
    if last == "bias":
        return 0.1 * noise
    return 1 + 0.1 * noise if noise.ndim == 1 else noise / math.prod(noise.shape[1:]) ** 0.5


def load_golden(name: str) -> Golden:
    """The record of a name such as ``pvt_tiny_224``."""
    return Golden(name, json.loads((GOLDEN / f"{name}.json").read_text()))
