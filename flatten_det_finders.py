"""Let Python find modules that OpenMMLab's packages look for and that may not be installed.

- ``mmcv._ext``, where mmcv was installed without its compiled extension;
- ``panopticapi``, which MMDetection needs for panoptic masks and which is on no package index;
- ``mmsegmentation``, whose configs ``mmseg::`` names, where the distribution is ``onedl-mmsegmentation``.

Importing this module puts the finders in place. ``flatten_det`` imports it, and so does
``flatten_det_finders.pth`` in site-packages whenever Python starts: ``mmdet`` looks for ``mmcv._ext``,
and mmengine for ``mmsegmentation``, before a config's ``custom_imports`` are read. It therefore stands
outside the package and imports nothing but ``sys``.
"""

import sys


class StandInFinder:
    """Find a missing module in ``flatten_det/compat``, in what stands in for it.

    It stands last on ``sys.meta_path``, so the real module is found before it is asked. A stand-in is
    loaded under the real name, because importing it from ``flatten_det`` would first import
    ``flatten_det``, which needs mmdet, which may be what is being imported.
    """

    FILES = {  # noqa: RUF012
        "mmcv._ext": "mmcv_ops/__init__.py",
        **dict.fromkeys(
            ("panopticapi", "panopticapi.evaluation", "panopticapi.utils"), "panoptic_api.py"
        ),
    }

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in cls.FILES:
            return None
        from importlib.util import find_spec, spec_from_file_location
        from pathlib import Path

        package = find_spec("flatten_det")
        if package is None or package.origin is None:
            return None
        file = Path(package.origin).parent / "compat" / cls.FILES[name]
        folder = [str(file.parent)] if file.name == "__init__.py" else []
        return spec_from_file_location(name, file, submodule_search_locations=folder)


class MMSegConfigFinder:
    """Let mmengine inherit ``mmseg::`` configs from ``onedl-mmsegmentation``.

    mmengine asks whether ``mmsegmentation`` is installed, the name of the official distribution, and
    reads the configs beside its origin. It must get an answer before any code of a config runs.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "mmsegmentation":
            return None
        from importlib.machinery import ModuleSpec
        from importlib.util import find_spec

        package = find_spec("mmseg")
        # Without a loader: a place to look at, nothing to import.
        return package and ModuleSpec(name, loader=None, origin=package.origin)


sys.meta_path += [StandInFinder, MMSegConfigFinder]
