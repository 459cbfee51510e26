"""What tests have the ranks of a run do: a tiny training, notes of it, and failures of chosen kinds."""

import json
import os
import signal
import time
from pathlib import Path

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from toy_training import make_config


def write_toy(folder: Path, *hooks: dict, by_epoch: bool = True, **changes: object) -> Path:
    """A training of milliseconds, which keeps a journal and a checkpoint of each iteration."""
    folder.mkdir(exist_ok=True)
    cfg = make_config(folder, by_epoch, {"model.norm": False} | changes)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    cfg.custom_hooks = [{"type": "RankJournal"}, *hooks]
    cfg.randomness = {"seed": 3}
    cfg.custom_imports = {"imports": ["toy_training", "rank_hooks"]}
    cfg.dump(folder / "toy.json")
    return folder / "toy.json"


@HOOKS.register_module()
class RankJournal(Hook):
    """Writes the loss, and the toy's samples, of each iteration to ``rank<n>.jsonl`` in the work dir.

    Args:
        pause: seconds that an iteration takes longer.
    """

    def __init__(self, pause: float = 0) -> None:
        self._pause = pause

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        time.sleep(self._pause)
        loss = outputs["loss"].detach().double()
        all_reduce(loss, "mean")
        entry = {"iter": runner.iter, "loss": loss.item()}
        for key in ("items", "noise"):
            if key in data_batch:
                entry[key] = data_batch[key].tolist()
        with Path(runner.work_dir, f"rank{runner.rank}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


@HOOKS.register_module()
class FailingRank(Hook):
    """Has one rank fail at an iteration, of the first start alone.

    Args:
        rank: which one.
        iteration: when, from 0.
        how: ``kill``: by SIGKILL; ``nan``: the weights' gradients of one update; else with that message.
    """

    # After the checkpoint of the iteration before.
    priority = "LOWEST"

    def __init__(self, rank: int, iteration: int, how: str) -> None:
        self._rank, self._iteration, self._how = rank, iteration, how

    def before_train_iter(self, runner: Runner, batch_idx, data_batch=None) -> None:
        is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if (runner.rank, runner.iter) != (self._rank, self._iteration) or is_restarted:
            return
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "nan":
            data_batch["items"].mul_(float("nan"))
            return
        raise ArithmeticError(self._how)


def journal(work_dir: Path, rank: int = 0) -> list[dict]:
    """What a rank's :class:`RankJournal` wrote."""
    return [json.loads(line) for line in Path(work_dir, f"rank{rank}.jsonl").open()]
