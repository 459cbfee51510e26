"""The commands of ``flatten-det``, one module each; files in ``tools/`` do the same from a checkout."""

import argparse
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from ..cli import outlive_readers, run_tool
from ..compat.patches import atomic_local_files
from ..errors import did_you_mean, is_first_process
from ..files.checkpoints import checkpoints_read_once, trusted_checkpoints

COMMANDS = {
    "train": "train a detector or a segmentor",
    "test": "evaluate a checkpoint on a config's test data",
    "evaluate": "say where a model errs: by class, kind of error and image",
    "infer": "predict images: pictures, JSON and label maps",
    "serve": "answer requests for predictions, with a page for browsers",
    "models": "list the configs that commands take by name",
    "prepare": "get public data sets, or write a config for your own",
    "check": "find what is wrong with a config's data",
    "browse": "draw a config's data as the model gets them",
    "export": "make a file for ONNX Runtime, OpenVINO or torch.export",
    "convert": "make a backbone file for init_cfg of a checkpoint",
    "benchmark": "compare speed and memory of models over image sizes",
    "benchmark-attention": "compare implementations of the attention",
    "flops": "count parameters and multiply-adds",
    "analyze": "draw and measure attention weights",
    "plot": "draw training curves of several runs",
    "ablate": "train variants of the attention and compare them",
}
# What the frameworks say of themselves whenever they run.
for _remark in (
    "faster_coco_eval is not installed",
    "Default ``avg_non_ignore`` is False",
    "The draw is False",
    "`reduce_zero_label` will be deprecated",
    "Warning: The (bbox|polygon|text) is out of bounds",
    "torch.meshgrid",  # MMDetection's call, which goes on to work.
    "`broadcast_buffers` is deprecated",  # MMEngine's
):
    warnings.filterwarnings("ignore", message=_remark)
if not is_first_process():
    warnings.simplefilter("ignore")  # The first one says it.
outlive_readers()


def main(argv: list[str] | None = None) -> int:
    """Run ``flatten-det COMMAND ...``, with what comes after the program's name; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="flatten-det",
        usage="flatten-det [-h] [--version] COMMAND ...",
        description="Dense prediction with the FLatten Transformer.",
        epilog="commands (each has a --help of its own):\n"
        + "\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"flatten-det {version('flatten-det')}"
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    command = parser.parse_args(argv[:1]).command
    if command not in COMMANDS:
        meant = did_you_mean(command, COMMANDS)
        parser.error(f"there is no command {command}: {meant}Commands are {', '.join(COMMANDS)}")
    # Usage errors begin with the first of them, and commands quote the others.
    sys.argv = [f"flatten-det {command}", *argv[1:]]
    return import_module(f".{command.replace('-', '_')}", __name__).main()


def run_command(work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Do a command's work; returns the exit code.

    Files that mmengine writes are whole or not there, no checkpoint is read twice, and those of
    ``--trust-checkpoint`` are trusted. The work gets the arguments, and may return an exit code.
    """
    codes: list[int] = []
    trust = getattr(args, "trust_checkpoint", False)

    def guarded() -> None:
        with atomic_local_files(), checkpoints_read_once(), trusted_checkpoints(trust):
            codes.append(work(args) or 0)

    return run_tool(guarded, args.debug) or sum(codes)
