"""The device of a run."""

import torch

from ...errors import UserError


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: the GPU if there is one, or else the CPU.

    Raises:
        UserError: if there is no such device here, or nothing is measured on its kind.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give cpu, cuda or cuda:1 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch finds no such GPU here; see `nvidia-smi`")
    if device.type == "cuda":
        # Without an index it is the current one, but `set_device` needs it.
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device
