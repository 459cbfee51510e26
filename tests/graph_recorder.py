"""A CUDA graph without a card: operations repeated with the tensors and numbers of the capture."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx


class CpuRecorder:
    """In place of ``flatten_det.backbones.cuda_graphs.Recorder``."""

    device_type = "cpu"
    made = 0

    def __init__(self, device: torch.device) -> None:
        self.turns = 0

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        run()
        outputs = None

        def traced(_):
            nonlocal outputs
            outputs = run()
            return outputs

        program = make_fx(traced)(torch.zeros(()))
        found = program(torch.zeros(()))
        # As addresses: a tensor whose memory is another one later is read where it was.
        for name, value in list(vars(program).items()) + list(program._buffers.items()):
            if isinstance(value, torch.Tensor):
                setattr(program, name, value.detach())
        CpuRecorder.made += 1

        def replay() -> None:
            with torch.no_grad():
                for kept, new in zip(found, program(torch.zeros(())), strict=True):
                    kept.copy_(new)

        return replay, found

    def take_turn(self) -> None:
        self.turns += 1
