"""Let Python find two modules that OpenMMLab's packages look for and that may not be installed.

- ``mmcv._ext``, where mmcv was installed without its compiled extension;
- ``mmsegmentation``, whose configs ``mmseg::`` names, where the distribution is ``onedl-mmsegmentation``.

Importing this module puts the finders in place. ``flatten_det`` imports it, and so does
``flatten_det_finders.pth`` in site-packages whenever Python starts: ``mmdet`` looks for ``mmcv._ext``,
and mmengine for ``mmsegmentation``, before a config's ``custom_imports`` are read. It therefore stands
outside the package and imports nothing but ``sys``.
"""

import sys


class MMCVExtFinder:
    """Find ``mmcv._ext`` in ``flatten_det/mmcv_ops``.

    It stands last on ``sys.meta_path``, so a compiled extension is found before it is asked. The
    folder is loaded under the name ``mmcv._ext``, because ``flatten_det.mmcv_ops`` would first
    import ``flatten_det``, which needs mmdet, which may be what is being imported.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "mmcv._ext":
            return None
        from importlib.util import find_spec, spec_from_file_location
        from pathlib import Path

        package = find_spec("flatten_det")
        if package is None or package.origin is None:
            return None
        folder = Path(package.origin).with_name("mmcv_ops")
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


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


sys.meta_path += [MMCVExtFinder, MMSegConfigFinder]
