"""Where a model errs: by class, by kind of error, by image.

Read :mod:`.detections` (COCO's matches as arrays) and :mod:`.error_kinds` (TIDE's kinds), or :mod:`.pixels`,
first; :mod:`.collect` gets predictions out of a test, :mod:`.run` writes the report.
"""
