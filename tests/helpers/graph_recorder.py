"""A CUDA graph without a card: operations repeated with the tensors and numbers of the capture."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves


class CpuRecorder:
    """In place of ``flatten_det.backbones.cuda.Recorder``; it counts."""

    device_type = "cpu"
    captured = replayed = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        run()
        program = make_fx(lambda _: run())(torch.zeros(()))
        # As by addresses: where a tensor's memory is another one later, the former is read.
        for name, value in [*vars(program).items(), *program._buffers.items()]:
            if isinstance(value, torch.Tensor):
                setattr(program, name, value.detach())
        outputs = program(torch.zeros(()))
        CpuRecorder.captured += 1

        def replay() -> None:
            CpuRecorder.replayed += 1
            with torch.no_grad():
                found = tree_leaves(program(torch.zeros(())))
                for kept, new in zip(tree_leaves(outputs), found, strict=True):
                    kept.copy_(new)

        return replay, outputs

    def take_turn(self) -> None:
        pass
