"""Let ``import mmcv._ext`` work where mmcv was installed without its compiled extension.

Importing this module puts a finder for ``mmcv._ext`` in place. ``flatten_det`` imports it, and so
does ``flatten_det_mmcv_ext.pth`` in site-packages whenever Python starts: ``mmdet`` looks for
``mmcv._ext`` long before a config's ``custom_imports`` are read. It therefore stands outside the
package and imports nothing but ``sys``.
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


sys.meta_path.append(MMCVExtFinder)
