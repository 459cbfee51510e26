"""Answer requests for predictions: ``flatten-det serve CONFIG [CHECKPOINT]``."""

import argparse
import warnings
from importlib.util import find_spec
from pathlib import Path

from ..cli import (
    add_common_options,
    add_trust_option,
    use_matplotlib_without_display,
)
from ..config import load_config
from ..errors import UserError, warn_once
from ..files.images import set_pixel_limit
from ..predict.predictor import PRECISIONS, PredictionWarning, Predictor
from . import run_command

_PACKAGES = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Serve a detector or a segmentor over HTTP: predictions, attention maps, metrics, and a "
        "page for browsers. Images come in requests; the server opens no other files and no addresses.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="random weights without one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: %(default)s, which only this machine reaches); there is no "
        "password: whoever reaches another one may send images",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="default: %(default)s; 0: any that is free"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=[*PRECISIONS, "auto"],
        default="auto",
        help="of the model (default: fp16 on a GPU, else fp32)",
    )
    group = parser.add_argument_group("limits")
    for name, kind, value, does in (
        ("max-upload-mb", float, 20, "megabytes of a request"),
        ("max-pixels", int, 50_000_000, "pixels of an image"),
        ("queue", int, 64, "requests that may wait; further ones are to come again later"),
        (
            "timeout",
            float,
            30,
            "seconds in which a request must have come, and then, the model must have begun with it",
        ),
    ):
        group.add_argument(f"--{name}", type=kind, default=value, help=f"{does} (default: {value})")
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_args(argv)
    for name in ("max_upload_mb", "max_pixels", "queue", "timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: must be positive, got {getattr(args, name)}")
    if not 0 <= args.port < 1 << 16:
        parser.error(f"argument --port: must be 0 to 65535, got {args.port}")
    return args


def run(args: argparse.Namespace) -> None:
    """Load the model and serve it."""
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'flatten-det[serve]'")
    from ..serving.app import make_app
    from ..serving.served_model import ServedModel
    from ..serving.server import (
        LOOPBACK_NAMES,
        address_of,
        is_loopback,
        open_socket,
        run_server,
    )
    from ..serving.uploads import Limits

    use_matplotlib_without_display()
    warnings.simplefilter("ignore", PredictionWarning)  # Clients are told.
    limits = Limits(
        upload_bytes=round(args.max_upload_mb * (1 << 20)),
        pixels=args.max_pixels,
        waiting=args.queue,
        seconds=args.timeout,
    )
    # The server's own limit decides: Pillow's would refuse headers below it, and in other words.
    set_pixel_limit(2 * limits.pixels)
    cfg = load_config(args.config, args.cfg_options)
    with open_socket(args.host, args.port) as opened:
        predictor = Predictor(cfg, args.checkpoint, args.device, args.precision, bgr=True)
        if args.checkpoint is None:
            warn_once("no checkpoint given: weights, and so predictions, are random")
        served = ServedModel(predictor, Path(cfg.filename or args.config).stem)
        hosts = (args.host, *LOOPBACK_NAMES) if is_loopback(args.host) else ("*",)
        app = make_app(served, limits, hosts)
        opened.listen()
        print(f"{served.name}: {address_of(opened)} (Ctrl-C ends)", flush=True)
        if not is_loopback(args.host):
            warn_once("whoever reaches this address may send images: there is no password")
        run_server(app, opened, limits)
    print("stopped")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
