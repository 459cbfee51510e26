"""Let ``import mmcv._ext`` work where mmcv was installed without its compiled extension.

The build copies this file to site-packages as ``_flatten_det_mmcv_ext.py``, next to a ``.pth`` file
that calls :func:`install` whenever Python starts: ``mmdet`` reaches ``mmcv._ext`` long before a
config's ``custom_imports`` are read. It therefore stands alone and imports only ``sys``.
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


def install():
    """Put the finder last on ``sys.meta_path``; do nothing where it already is."""
    # Compared by name: the copy in site-packages and the one in flatten_det are two classes.
    if all(type(finder).__name__ != MMCVExtFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(MMCVExtFinder())
