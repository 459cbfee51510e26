"""The data doctor: finds what is wrong with the data sets of a config, before a training does.

The data is a stranger's: nothing in it is unpickled, no file name may leave its folder, and no image
is decoded that is larger than Pillow's limit.
"""
