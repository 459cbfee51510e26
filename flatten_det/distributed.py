"""Several processes of one training or test: how they were started, and how they find each other."""

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing

from .errors import UserError

# What torch reads, and from what Slurm and Open MPI say it.
_RANK = {
    "slurm": {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"},
    "mpi": {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    "pytorch": {name: name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
}
LAUNCHERS = ("auto", "none", *_RANK)
_FIRST_PORT, _PORTS = 20_000, 20_000
# Seconds within which all processes must have come, and that a collective call may take: mmengine's default.
TIMEOUT = 1800
# Seconds to wait for an answer before an error message is printed.
_PATIENCE = 5


def launcher(environment: Mapping[str, str] = os.environ) -> str:
    """What started this process beside others: ``pytorch`` (torchrun), ``slurm``, ``mpi``; or ``none``.

    A batch script that Slurm runs is one process, although its environment tells of the tasks to come.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return "pytorch"
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return "slurm"
    if int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "mpi"
    return "none"


def connect(cfg: Config) -> None:
    """Connect this process with the others, if ``cfg.launcher`` says that there are such.

    On GPUs by the backend of ``env_cfg.dist_cfg``, nccl by default; without a GPU by gloo, for which the
    config is told how to wrap the model.

    Raises:
        UserError: the launcher's variables are not there, or the others do not come.
    """
    if cfg.get("launcher", "none") == "none":
        return
    has_gpu = get_device() != "cpu"
    if not has_gpu:
        # mmengine's own wrapper takes the number of a GPU.
        wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
        wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        cfg.model_wrapper_cfg = cfg.get("model_wrapper_cfg") or wrapper
        cfg.model_wrapper_cfg["device_ids"] = None
    if is_distributed():
        return
    tell_torch(cfg.launcher)
    env = cfg.get("env_cfg") or {}
    set_multi_processing(**env.get("mp_cfg", {}), distributed=True)
    options = dict(env.get("dist_cfg", {}))
    try:
        if has_gpu:
            init_dist("pytorch", **options)
        else:
            timeout = timedelta(seconds=options.get("timeout", TIMEOUT))
            torch.distributed.init_process_group("gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes of this run did not find each other at {address}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def tell_torch(name: str) -> None:
    """Set torch's variables from those of a launcher; what is set already stays.

    Raises:
        UserError: this process was not started by it.
    """
    for ours, theirs in _RANK[name].items():
        if theirs not in os.environ:
            raise UserError(
                f"--launcher {name}, but {theirs} is not set: start the command by "
                f"{ {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}[name] }, or leave it out"
            )
        os.environ.setdefault(ours, os.environ[theirs])
    if name == "slurm":
        os.environ.setdefault("MASTER_ADDR", _first_host())
        # Jobs that share a machine have ports of their own.
        port = _FIRST_PORT + int(os.environ.get("SLURM_JOB_ID") or 0) % _PORTS
        os.environ.setdefault("MASTER_PORT", str(port))
    elif name == "mpi" and "MASTER_ADDR" not in os.environ:
        raise UserError(
            "--launcher mpi: MASTER_ADDR is not set: give the first machine's name to all "
            "(mpirun -x MASTER_ADDR=... -x MASTER_PORT=29500)"
        )
    os.environ.setdefault("MASTER_PORT", "29500")


def _first_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    if "[" not in nodes:
        return nodes.partition(",")[0] or "127.0.0.1"
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"scontrol does not say which machine of {nodes} is the first: set MASTER_ADDR to its name"
        ) from error


def is_first_to_say(message: str) -> bool:
    """Whether no other process of a distributed run has said so: all fail of what is wrong for all.

    True where the others cannot be asked.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return True
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"flatten_det/{start}/{hashlib.sha256(message.encode()).hexdigest()}"
    with contextlib.suppress(
        Exception
    ):  # The first process may be gone already, and its store with it.
        return _store().add(key, 1) == 1
    return True


def _store() -> torch.distributed.Store:
    if is_distributed():
        return torch.distributed.distributed_c10d._get_default_store()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConnectionError("there is none before the processes are connected")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, timeout=timedelta(seconds=_PATIENCE))


def of_rank() -> str:
    """Says which process of a distributed run this is; empty for one alone."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    return f" (rank {os.environ.get('RANK', '?')} of {count})" if count > 1 else ""


def leave_for_torchrun(message: str) -> None:
    """Write why this process failed where torchrun's report takes it from, if torchrun started it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        content = {"message": {"message": message, "extraInfo": details}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
