"""Dense prediction with the FLatten Transformer: ``from flatten_det import Predictor``.

Importing it registers the backbones, a neck, the data sets and the visualizer, and lets mmengine read
checkpoints, pickle and YAML files as data only, find this package's configs by name, and pass on to the
backbones which part of an image is padding.
"""

import contextlib
import io
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import flatten_det_finders  # noqa: F401  for where the .pth file is not read

if TYPE_CHECKING:
    from .predict.predictor import Predictor  # noqa: F401

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for, as it takes a second, and the frameworks."""
    if name == "Predictor":
        from .predict.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextlib.contextmanager
def _without_remarks():
    """Leave out what the frameworks say of packages that nobody needs when they are imported."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if not line.startswith("Could not import OneDL"):
                print(line)


with _without_remarks():
    # `flatten_det.attention` alone needs torch only, so it must be importable without the frameworks.
    if find_spec("mmengine") is not None:
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            # Its desktop package lacks libraries of the system, or was removed with files of the other one.
            raise ImportError(
                f"OpenCV cannot be loaded ({error}): pip uninstall opencv-python, then pip install "
                "--force-reinstall --no-deps opencv-python-headless (in a checkout: uv sync "
                "--reinstall-package opencv-python-headless)"
            ) from None
        from . import backbones, data, necks  # noqa: F401
        from .compat import patches
        from .compat.moved import find_old_places
        from .train.optimizer import LayerDecayOptimWrapperConstructor

        patches.read_mmengine_checkpoints_as_data()
        patches.read_mmengine_files_as_data()
        patches.tell_backbones_of_padding()
        patches.decay_layers_of_our_backbones(LayerDecayOptimWrapperConstructor)
        patches.find_our_configs_by_name()
        patches.ask_no_compiler_that_is_absent()
        find_old_places()
    if find_spec("mmdet") is not None:
        from .predict import drawing  # noqa: F401
