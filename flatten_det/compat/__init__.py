"""What makes other packages work with this one: mmcv's ops, ``panopticapi``, and every patch of mmengine."""
