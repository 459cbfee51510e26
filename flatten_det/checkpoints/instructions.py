"""What mmengine would do because a checkpoint says so, though it is data only."""

import os
from typing import Any

import numpy as np

# mmengine names the checkpoint with the best score so, and removes it when there is a better one.
_BEST = "best_"


def without_instructions(checkpoint: Any, folder: str | None) -> Any:
    """Take out of a checkpoint, in place, what is an instruction rather than a state.

    - ``meta['config']``, from MMDetection 2: when a run is resumed, mmengine executes this text as
      Python to compare the number of GPUs.
    - ``best_ckpt*`` of the logs: a path that mmengine removes on the next better score. It comes to mean
      the file of this name in the checkpoint's own folder, where a run writes it; also in a copied folder.
    - ``keep_ckpt_ids`` of the logs that are no whole numbers: they would be parts of such paths.
    - ``last_ckpt`` of the logs and ``meta['seed']``, which are printed, if they are no text or number.

    Args:
        checkpoint: as it was read; anything but a dict is left alone.
        folder: where its file is; None if that is not where its run goes on, as for a download.

    Returns:
        The checkpoint.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint
    meta, hub = checkpoint.get("meta"), checkpoint.get("message_hub")
    if isinstance(meta, dict):
        meta.pop("config", None)
        if not isinstance(meta.get("seed"), int | np.integer):
            meta.pop("seed", None)
    if isinstance(hub, dict) and isinstance(hub.get("runtime_info"), dict):
        _correct_paths(hub["runtime_info"], folder)
        resumed = hub.get("resumed_keys")
        if isinstance(resumed, dict):
            for key in {"last_ckpt", *_path_keys(resumed)} & resumed.keys() - hub[
                "runtime_info"
            ].keys():
                del resumed[key]
    return checkpoint


def _correct_paths(logs: dict[Any, Any], folder: str | None) -> None:
    ids = logs.get("keep_ckpt_ids")
    if ids is not None:
        logs["keep_ckpt_ids"] = [i for i in ids if type(i) is int] if type(ids) is list else []
    if type(logs.get("last_ckpt")) is not str:
        logs.pop("last_ckpt", None)
    for key in _path_keys(logs):
        name = os.path.basename(logs[key]) if type(logs[key]) is str else ""
        if folder is not None and name.startswith(_BEST):
            logs[key] = os.path.join(folder, name)
        else:
            del logs[key]


def _path_keys(logs: dict[Any, Any]) -> set[Any]:
    return {key for key in logs if isinstance(key, str) and key.startswith("best_ckpt")}
