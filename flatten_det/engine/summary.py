"""What a finished training left behind, and where."""

from pathlib import Path

from mmengine.runner import Runner


def training_summary(runner: Runner) -> str:
    """Name the checkpoints, the log and the drawn validation pictures of a finished run."""
    info = runner.message_hub.runtime_info
    log_dir = Path(runner.log_dir)
    entries = {
        "checkpoint": info.get("last_ckpt"),
        "best": info.get("best_ckpt"),
        "log": log_dir / f"{runner.timestamp}.log",
    }
    pictures = log_dir / "vis_data" / "vis_image"
    if pictures.is_dir():
        entries["pictures"] = pictures
    lines = [f"  {name:<11}{_short(path)}" for name, path in entries.items() if path]
    return "\n".join(["Training finished.", *lines])


def _short(path: str | Path) -> Path:
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
