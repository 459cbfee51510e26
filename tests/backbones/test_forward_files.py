"""A forward pass can be read: few files, and few changes from one to another."""

import sys
from itertools import pairwise
from pathlib import Path

import torch

import flatten_det
from flatten_det.backbones import build_backbone

# The attention has 5 of the files.
MAX_FILES, MAX_CHANGES = 10, 200


def test_a_forward_pass_enters_few_files():
    root, files = str(Path(flatten_det.__file__).parent), []

    def listen(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            files.append(frame.f_code.co_filename)

    model, image = build_backbone("flatten-pvt-t").eval(), torch.rand(1, 3, 512, 512)
    with torch.no_grad():
        before = sys.getprofile()
        sys.setprofile(listen)
        try:
            model(image)
        finally:
            sys.setprofile(before)
    assert len(set(files)) <= MAX_FILES, sorted(set(files))
    assert sum(a != b for a, b in pairwise(files)) <= MAX_CHANGES
