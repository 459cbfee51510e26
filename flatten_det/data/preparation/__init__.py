"""Data sets on disk: download, unpack, convert, check; and configs for data of one's own.

Public data sets are a :class:`~.layout.PublicDataSet` each: archives, what the folder must hold, and how to
convert what the frameworks cannot read. Data of one's own, of whatever format, has to become a
:class:`~.coco_file.CocoFile` per split, in ``custom``; the rest of the way is the same for all.
"""
