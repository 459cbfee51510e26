"""How processes learn of each other: launchers' variables, a store, the option --processes."""

import argparse
import os
import signal
from collections.abc import Iterator, MutableMapping

import pytest
import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper

from flatten_det import cli, distributed
from flatten_det.distributed import from_first_process, launch_id, launcher, tell_torch
from flatten_det.errors import UserError, explain, lost_a_peer, warn_once
from flatten_det.train.processes import in_processes, run_processes

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "host"}
TASK = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41234"}
MPI = {f"OMPI_COMM_WORLD_{name}": "2" for name in ("RANK", "SIZE", "LOCAL_RANK")}


@pytest.fixture
def environment() -> Iterator[MutableMapping[str, str]]:
    """An empty environment, in place of this process's."""
    saved = dict(os.environ)
    os.environ.clear()
    yield os.environ
    os.environ.clear()
    os.environ.update(saved)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "none"),
        (TORCHRUN, "pytorch"),
        ({"SLURM_STEP_NUM_TASKS": "4", **TASK}, "slurm"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, "none"),
        (TASK, "none"),  # A batch script, which is one process.
        (MPI, "mpi"),
        ({"SLURM_STEP_NUM_TASKS": "4", **TASK, **TORCHRUN}, "pytorch"),  # srun torchrun
    ],
    ids=str,
)
def test_launcher_is_what_the_environment_says(variables, name):
    assert launcher(variables) == name


def test_slurm_tells_torch(environment):
    environment.update(TASK, SLURM_STEP_NODELIST="first,second")
    tell_torch("slurm")
    told = {name: environment[name] for name in (*TORCHRUN, "MASTER_PORT")}
    assert told == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "first",
        "MASTER_PORT": "21234",
    }


def test_slurm_is_asked_for_the_first_of_abbreviated_hosts(environment, tmp_path, monkeypatch):
    command = tmp_path / "scontrol"
    command.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[7-8]" ] && printf "n7\\nn8\\n"\n')
    command.chmod(0o755)
    environment.update(TASK, SLURM_NODELIST="n[7-8]", PATH=f"{tmp_path}:/bin:/usr/bin")
    tell_torch("slurm")
    assert environment["MASTER_ADDR"] == "n7"
    command.unlink()
    environment["PATH"] = str(tmp_path)  # Machines of a cluster have one of their own.
    del environment["MASTER_ADDR"]
    with pytest.raises(UserError, match=r"scontrol .* n\[7-8\] .*set MASTER_ADDR"):
        tell_torch("slurm")


def test_mpi_needs_an_address(environment):
    environment.update(MPI)
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        tell_torch("mpi")
    environment["MASTER_ADDR"] = "host"
    tell_torch("mpi")
    assert (environment["RANK"], environment["MASTER_PORT"]) == ("2", "29500")


@pytest.mark.parametrize(
    ("name", "start"), [("pytorch", "torchrun"), ("slurm", "srun"), ("mpi", "mpirun")]
)
def test_a_launcher_that_did_not_start_the_process_is_named(environment, name, start):
    with pytest.raises(UserError, match=f"--launcher {name}, but .* by {start}"):
        tell_torch(name)


@pytest.fixture
def agent(environment) -> torch.distributed.TCPStore:
    """What a launcher's processes ask, and what they are told of it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(store.port),
        WORLD_SIZE="2",
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    return store


def test_one_process_says_what_all_find(agent, environment):
    assert distributed.is_first_to_say("it is wrong")
    assert not distributed.is_first_to_say("it is wrong")
    assert distributed.is_first_to_say("that is wrong too")
    environment["TORCHELASTIC_RESTART_COUNT"] = "1"
    assert distributed.is_first_to_say("it is wrong")


def test_where_the_others_cannot_be_asked_all_say_it(environment, monkeypatch):
    monkeypatch.setattr(distributed, "_PATIENCE", 0.1)
    environment.update(WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="True")
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="9")
    assert distributed.is_first_to_say("it is wrong")
    assert distributed.is_first_to_say("it is wrong")


def test_a_launch_has_one_id_over_its_restarts(agent, environment):
    first = launch_id()
    environment["TORCHELASTIC_RESTART_COUNT"] = "1"
    assert launch_id() == first is not None
    other = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment["MASTER_PORT"] = str(other.port)
    assert launch_id() not in (None, first)
    del environment["TORCHELASTIC_USE_AGENT_STORE"]
    assert launch_id() is None


def test_a_usage_error_of_all_is_printed_once(agent, capsys):
    parser = cli.RankParser(prog="command")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["--nothing"])
        assert stop.value.code == 2
    assert capsys.readouterr().err.count("unrecognized arguments: --nothing") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--processes", "0"], "must be at least 1"),
        (["--processes", "2", "--max-restarts", "-1"], "must be at least 0"),
        (["--processes", "all"], "there is none"),
    ],
)
def test_counts_that_cannot_be(capsys, monkeypatch, arguments, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    parser = cli.RankParser()
    cli.add_launcher_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert reason in capsys.readouterr().err


def options(*arguments: str) -> argparse.Namespace:
    parser = cli.RankParser()
    cli.add_launcher_options(parser)
    return parser.parse_args(arguments)


def test_options_that_do_not_go_together(environment, monkeypatch):
    restarts = options("--max-restarts", "2")
    with pytest.raises(UserError, match="add that, or give it to torchrun"):
        in_processes("train", lambda args: 0)(restarts)
    environment.update(TORCHRUN)
    several = options("--processes", "2")
    with pytest.raises(UserError, match=r"started already \(pytorch\): leave it out"):
        in_processes("train", lambda args: 0)(several)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs GPUs, and there is none"):
        cli.set_launcher(Config(), options("--dist-backend", "nccl"))


def test_the_backend_reaches_the_config(environment):
    cfg = Config({"env_cfg": {"dist_cfg": {"backend": "nccl"}}})
    cli.set_launcher(cfg, options("--dist-backend", "gloo"))
    assert (cfg.launcher, cfg.env_cfg.dist_cfg.backend) == ("none", "gloo")


def test_what_the_first_process_finds_or_fails_of_all_get(monkeypatch):
    told: list = []
    monkeypatch.setattr(distributed, "broadcast_object_list", told.extend)
    assert from_first_process(lambda: "checkpoint") == "checkpoint"
    with pytest.raises(ZeroDivisionError):
        from_first_process(lambda: 1 / 0)
    assert str(told[-1]) == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    answers = [["checkpoint", None], [None, told[-1]]]
    monkeypatch.setattr(
        distributed,
        "broadcast_object_list",
        lambda told: told.__setitem__(slice(2), answers.pop(0)),
    )
    assert from_first_process(pytest.fail) == "checkpoint"
    with pytest.raises(UserError, match="division by zero"):
        from_first_process(pytest.fail)


def test_warnings_come_from_the_first_process(environment, capsys):
    for rank in ("1", "0"):
        environment["RANK"] = rank
        warn_once(f"from {rank}")
    assert capsys.readouterr().err == "warning: from 0\n"


def test_a_lost_peer_is_no_fault_of_the_config():
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:525] Connection closed by peer [::1]:9")
    assert lost_a_peer(gone)
    assert "see what that one says" in explain(gone)
    assert lost_a_peer(torch.distributed.DistNetworkError("NCCL"))
    assert not lost_a_peer(RuntimeError("shapes do not match"))


def test_sync_bn_without_gpus_has_the_statistics_of_all_ranks(lone_process):
    """Of one rank here: the wrapper, which torch's SyncBN refuses, is what is tested."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.SyncBatchNorm(2))
    names = layers.state_dict().keys()
    wrapped = distributed.CpuDataParallel(layers, device_ids=[0])
    assert is_model_wrapper(wrapped)
    assert wrapped.module.state_dict().keys() == names
    images = torch.randn(3, 1, 4, 4)
    output = wrapped(images)
    assert output.mean().abs() < 1e-5


def test_without_gpus_the_config_says_how_to_wrap(environment, monkeypatch):
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    environment.update(TORCHRUN)
    cfg = Config({"launcher": "pytorch", "find_unused_parameters": True})
    distributed.connect(cfg)
    assert cfg.model_wrapper_cfg.type == "CpuDataParallel"
    assert cfg.model_wrapper_cfg.find_unused_parameters


def test_the_processes_found_none_of_the_others(environment, monkeypatch):
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    environment.update(TORCHRUN, MASTER_ADDR="127.0.0.1", MASTER_PORT="9")
    cfg = Config({"launcher": "pytorch", "env_cfg": {"dist_cfg": {"timeout": 0.2}}})
    with pytest.raises(UserError, match=r"did not find each other at 127\.0\.0\.1:9: "):
        distributed.connect(cfg)


def test_a_command_that_does_not_start_is_told_last(capfd, monkeypatch):
    """With a Python that fails before anything is imported."""
    monkeypatch.setattr("flatten_det.train.processes._START", "raise SystemExit(7)")
    assert run_processes("train", [], 2, max_restarts=1) == 7
    again, last = capfd.readouterr().err.splitlines()
    assert again.endswith("it ended with exit code 7; starting again (1 of 1)")
    assert last.startswith("error (rank ")
    assert last.endswith("exit code 7")


@pytest.mark.parametrize("argv", [None, ["config.py"]], ids=["program", "function"])
def test_a_signal_that_comes_after_the_work_is_no_failure(environment, argv):
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    args = argparse.Namespace(processes=None, max_restarts=0)
    try:
        assert in_processes("train", lambda args: 3, argv)(args) == 3
        changed = {n: now for n in numbers if (now := signal.getsignal(n)) != before[n]}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert changed == ({} if argv else dict.fromkeys(numbers[:2], signal.SIG_IGN))
