"""Several processes of one run: how they were started, how they find each other, and what they share."""

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import pickle
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    init_dist,
    is_distributed,
    is_main_process,
)
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.utils.dl_utils import set_multi_processing

from .errors import UserError, explain, in_one_line, reason_of, warn_once

_T = TypeVar("_T")
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
BACKENDS = ("nccl", "gloo")
# How the runs begin that the option --processes started, which tells their errors itself.
OWN_RUN_ID = "flatten-det-"
_FIRST_PORT, _PORTS = 20_000, 20_000
# Seconds within which all processes must have come, and that a collective call may take: mmengine's default.
TIMEOUT = 1800
_START = "flatten_det/start"  # of keys in the launcher's store
_ALIGNMENT = 64  # bytes, of arrays in memory
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

    On GPUs by the backend of ``env_cfg.dist_cfg``, nccl by default, where processes that see fewer GPUs than
    there are processes on the machine take turns, as those of Slurm do that see one each. Without a GPU by
    gloo, for which the config is told how to wrap the model.

    Raises:
        UserError: the launcher's variables are not there, or the others do not come.
    """
    if cfg.get("launcher", "none") == "none":
        return
    tell_torch(cfg.launcher)
    has_gpu = get_device() != "cpu"
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not has_gpu:
        wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
        wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        wrapper = dict(cfg.get("model_wrapper_cfg") or wrapper)
        if wrapper.get("type") == "MMDistributedDataParallel":
            cfg.model_wrapper_cfg = wrapper | {"type": CpuDataParallel.__name__}
    if is_distributed():
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # As mmengine does, with a warning in each process.
    env = cfg.get("env_cfg") or {}
    set_multi_processing(**env.get("mp_cfg", {}), distributed=True)
    options = dict(env.get("dist_cfg", {}))
    try:
        if (store := _store_of_launcher()) is not None:
            # Which keeps what processes that failed have said of themselves.
            options["store"] = torch.distributed.PrefixStore(f"{_START}/{_start_number()}", store)
            options["rank"] = int(os.environ["RANK"])
            options["world_size"] = int(os.environ["WORLD_SIZE"])
        if has_gpu:
            init_dist("pytorch", **options)
        else:
            options["timeout"] = timedelta(seconds=options.get("timeout", TIMEOUT))
            torch.distributed.init_process_group(**(options | {"backend": "gloo"}))
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes of this run did not find each other at {address}: "
            f"{str(error).splitlines()[0]}"
        ) from error


@MODEL_WRAPPERS.register_module()
class CpuDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for ranks without a GPU.

    mmengine takes a rank's number for that of a GPU.
    """

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        use_sync_bn_of_cpu(module)
        super().__init__(module, **(options | {"device_ids": None}))


def use_sync_bn_of_cpu(model: torch.nn.Module) -> None:
    """Have mmcv's SyncBN in place of torch's, which works on GPUs only and has the same parameters."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.SyncBatchNorm):
                setattr(parent, name, convert_sync_batchnorm(child, "mmcv"))


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


def from_first_process(work: Callable[[], _T]) -> _T:
    """What ``work`` gives the first process, for all of them; the others wait for it.

    Whatever it raises there, all raise: the others get a UserError, of the same class if it is one.
    """
    told: list = [None, None]
    if is_main_process():
        try:
            told[0] = work()
        except Exception as error:
            told[1] = error
    failure = told[1]
    told[1] = failure and _for_others(failure)
    broadcast_object_list(told)
    if told[1] is not None:
        raise failure or told[1]
    return told[0]


def _for_others(failure: Exception) -> UserError:
    if isinstance(failure, UserError):
        return failure
    return UserError(explain(failure) or in_one_line(failure))


def from_first_of_machine(work: Callable[[], _T], is_same: Callable[[_T], bool]) -> _T:
    """What ``work`` gives one process of each machine, for all of them: its arrays are in memory only once.

    Each gets a copy of its own, whose arrays it may change without the others noticing. So does one process
    alone, as what the work took then goes back to the system: small objects of the outcome, such as ids, lie
    between millions of others, whose memory could not be given back.

    Each does the work for itself unless ``is_same`` says of the outcome that it is the same in all processes;
    and, with a warning, where it cannot be pickled, or the memory of another process not be mapped. Whatever
    ``work`` raises in one of the first processes, all raise, as in :func:`from_first_process`.
    """
    machines = all_gather_object(_machine())
    first = machines.index(machines[get_rank()])
    done = memory = failure = complaint = None
    if first == get_rank():
        try:
            done = work()
            if is_same(done):
                memory, complaint = _written(done)
        except Exception as error:
            failure = error
    told = all_gather_object((failure and _for_others(failure), memory))
    if failures := [error for error, _ in told if error is not None]:
        raise failure or failures[0]
    if (place := told[first][1]) is not None:
        done = None  # Before it is read: there would be two.
        with contextlib.suppress(OSError, TypeError, AttributeError):  # Of glibc alone.
            ctypes.CDLL(None).malloc_trim(0)
        done, complaint = _read(*place)
    complaints = all_gather_object(complaint)  # The memory is there until all have it.
    if memory is not None:
        os.close(memory[1])
    if len(machines) > 1 and (reason := next(filter(None, complaints), None)):
        warn_once(f"each process has the index of the data in memory for itself: {reason}")
    return work() if done is None else done


def _machine() -> Any:
    """What only processes have in common that can map each other's memory."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return boot, os.stat("/proc/self/ns/pid").st_ino, os.geteuid()
    except (OSError, AttributeError):  # Not Linux.
        return get_rank()


def _written(value: Any) -> tuple[tuple[int, int, list[tuple[int, int]]] | None, str | None]:
    """Process, file and parts of the memory that holds a value, or why there is none.

    The first part is a pickle, and the others are the arrays. The memory has no name, in whose place others
    could put a file. It ends with the last process that maps it, however that one ends.
    """
    arrays: list[pickle.PickleBuffer] = []
    parts: list[tuple[int, int]] = []
    try:
        content = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        descriptor = os.memfd_create("flatten_det")
    except Exception as error:  # Whatever classes of users raise; or there is no such memory.
        return None, f"it cannot be shared ({reason_of(error)})"
    with open(descriptor, "wb", closefd=False) as file:
        for part in (content, *(array.raw() for array in arrays)):
            begin = file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
            parts.append((begin, begin + file.write(part)))
    return (os.getpid(), descriptor, parts), None


def _read(process: int, descriptor: int, parts: list[tuple[int, int]]) -> tuple[Any, str | None]:
    """What :func:`_written` wrote, or why not: in pages that all processes share until they change one."""
    try:
        with open(f"/proc/{process}/fd/{descriptor}", "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        content, *arrays = (mapped[begin:end] for begin, end in parts)
        return pickle.loads(content, buffers=arrays), None
    except Exception as error:  # As above.
        return None, f"the memory of another one cannot be used ({reason_of(error)})"


def is_first_to_say(message: str) -> bool:
    """Whether no other process of a distributed run has said so: all fail of what is wrong for all.

    True where the others cannot be asked.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return True
    key = f"{_START}/{_start_number()}/{hashlib.sha256(message.encode()).hexdigest()}"
    # The first process may be gone already, and its store with it.
    with contextlib.suppress(Exception):
        if (store := _store_of_launcher()) is None and is_distributed():
            store = torch.distributed.distributed_c10d._get_default_store()
        return store is None or store.add(key, 1) == 1
    return True


def launch_id() -> str | None:
    """What is the same in all processes of a run, those that a launcher starts again after a failure, too.

    None if the launcher does not do so.
    """
    # torchrun's own id of a run may be the same in the next one.
    with contextlib.suppress(RuntimeError):
        if (store := _store_of_launcher()) is not None:
            return store.compare_set("flatten_det/launch", "", uuid.uuid4().hex).decode()
    return None


def _store_of_launcher() -> torch.distributed.Store | None:
    """What outlives the processes that it starts, if there is such a launcher."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, timeout=timedelta(seconds=_PATIENCE))


def _start_number() -> str:
    """How often the launcher has started the processes before."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def of_rank() -> str:
    """Says which process of a distributed run this is; empty for one alone."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    return f" (rank {os.environ.get('RANK', '?')} of {count})" if count > 1 else ""


def leave_for_launcher(message: str) -> bool:
    """Write why this process failed where its launcher takes it from: torchrun, or ``--processes``.

    Returns:
        Whether the launcher tells the user, so that this process need not.
    """
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return False
    details = {"py_callstack": message, "timestamp": str(int(time.time()))}
    content = {"message": {"message": message, "extraInfo": details}}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
    except OSError:
        return False
    return started_by_us()


def started_by_us() -> bool:
    """Whether ``--processes`` started this process beside others."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OWN_RUN_ID)


def disconnect() -> None:
    """Leave the other processes, at the end of a run that went well."""
    if is_distributed():
        if is_main_process():
            with contextlib.suppress(OSError):  # If there is none, or others use it.
                os.rmdir(".dist_test")  # Where mmengine gathered results.
        torch.distributed.destroy_process_group()
