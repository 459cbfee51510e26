"""Models as files that run without flatten_det: ONNX, and programs of ``torch.export``.

``graphs`` are what is exported, from the image to the result; ``exporters`` make files of them, and ``check``
compares a file with torch. ``run`` is the command.
"""
