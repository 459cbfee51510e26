"""Which part of a padded batch is image, and computing that part alone.

Frameworks pad the images of a batch to the largest one. Attention over the whole map would mix the padding
into every token, and the prediction for an image would depend on its batch mates. So padding has no part in
keys, queries, norms or convolutions, and learned grids fit each image's own map. There are two ways:

- Images go through the backbone without their padding, those of one size together (:func:`apply_to_valid`).
  Nothing is computed that nobody needs.
- All go through it at once, and every layer that looks beyond a token knows what is padding
  (:func:`fill_padding`). On a GPU, launches cost more than padding does.

:meth:`.base.DenseBackbone.computes_padded` decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import Padding, is_padding, shares_of_grid


@dataclass(frozen=True)
class _Batch:
    """Of the model that is being called.

    Attributes:
        images: ``(B, 3, H, W)``, padded.
        valid: ``(h, w)`` of each image in its top left corner.
    """

    images: Tensor
    valid: tuple[tuple[int, int], ...]

    def has_shape_of(self, images: Tensor) -> bool:
        """Whether ``images`` could be the batch, under another type or layout for instance."""
        own = self.images.shape
        return images.dim() == 4 and images.shape[:1] + images.shape[2:] == own[:1] + own[2:]


_current: ContextVar[tuple[_Batch, ...]] = ContextVar("flatten_det_batches", default=())


@contextmanager
def valid_regions(images: object, data_samples: object) -> Iterator[None]:
    """For the time of a model's call, what its data samples say about its images.

    Args:
        images: what the model is called with: ``(B, 3, H, W)``, or a dict of such, as the branches of
            semi-supervised detectors are; anything else says nothing.
        data_samples: with ``img_shape``, one for each image, in a dict with the same keys for a dict of
            images; anything else says nothing.
    """
    token = _current.set(tuple(_read(images, data_samples)))
    try:
        yield
    finally:
        _current.reset(token)


def _read(images: object, data_samples: object) -> Iterator[_Batch]:
    if isinstance(images, Mapping) and isinstance(data_samples, Mapping):
        for key in images.keys() & data_samples.keys():
            yield from _read(images[key], data_samples[key])
        return
    if not isinstance(images, Tensor) or images.dim() != 4:
        return
    valid = sizes_within(images, data_samples, "img_shape")
    if valid is not None:
        yield _Batch(images, valid)


def sizes_within(
    images: Tensor, data_samples: object, name: str
) -> tuple[tuple[int, int], ...] | None:
    """``(h, w)`` that each of the data samples has under a name.

    None unless there is one for each of ``images (B, C, H, W)``, not larger than ``(H, W)``.
    """
    if not isinstance(data_samples, Sequence) or len(data_samples) != len(images):
        return None
    shapes = [getattr(sample, name, None) for sample in data_samples]
    height, width = images.shape[2:]
    for shape in shapes:
        if shape is None or not (0 < shape[0] <= height and 0 < shape[1] <= width):
            return None
    return tuple((int(h), int(w)) for h, w, *_ in shapes)


def valid_sizes(images: Tensor) -> tuple[tuple[int, int], ...] | None:
    """``(h, w)`` of the image in each of ``images (B, C, H, W)``; None where nothing is padded or known.

    Inputs of another size than the model's own, such as the crops of sliding windows, are not known.
    """
    batches = _current.get()
    found = [batch for batch in batches if batch.images is images]
    found = found or [batch for batch in batches if batch.has_shape_of(images)]
    if len(found) != 1:
        return None
    hw_shape, valid = tuple(images.shape[2:]), found[0].valid
    return None if all(size == hw_shape for size in valid) else valid


def of_equal_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """The indices of each size, in the order of the first ones."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return groups


def apply_to_valid(
    backbone: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> tuple[Tensor, ...]:
    """Feature maps of padded images, computed without the padding and zero there.

    Args:
        backbone: from images to one map for each of ``strides``.
        images: ``(B, C, H, W)``.
        sizes: ``(h, w)`` of the image in each.
        strides: s of the maps, in pixels.

    Returns:
        ``(B, C_i, ceil(H/s), ceil(W/s))`` for each stride; what lies beyond ``ceil(h/s)`` and
        ``ceil(w/s)`` is zero.
    """
    groups = of_equal_size(sizes)
    of_groups = []
    for (height, width), members in groups.items():
        own = images[:, :, :height, :width]
        of_groups.append(backbone(own if len(groups) == 1 else own[members]))
    places = [index for members in groups.values() for index in members]
    is_in_order = places == sorted(places)
    order = None if is_in_order else torch.tensor(places).argsort().to(images.device)
    outs = []
    for stride, *parts in zip(strides, *of_groups, strict=True):
        height, width = (-(-size // stride) for size in images.shape[2:])
        padded = [
            F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts
        ]
        out = padded[0] if len(padded) == 1 else torch.cat(padded)
        outs.append(out if order is None else out[order])
    return tuple(outs)


def fill_padding(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    grid_sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, list[Padding]]:
    """Images with zeros in their padding, and what is padding of their feature maps.

    Args:
        images: ``(B, C, H, W)``.
        sizes: ``(h, w)`` of the image in each.
        strides: s of the maps ``(ceil(H/s), ceil(W/s))``, in pixels.
        grid_sizes: of the learned grids on the maps.
    """
    device, hw_shape = images.device, tuple(images.shape[2:])
    # One transfer, which waits for nothing, and few operations: launches are what is to be saved.
    of_maps = [[[-(-x // s) for x in size] for size in sizes] for s in strides]
    grids = [[size] * len(sizes) for size in grid_sizes]
    values = torch.tensor([sizes, *of_maps, *grids], dtype=torch.int32)
    values = values.to(device, non_blocking=True)
    size_of_images, size_of_maps, grids = values.split((1, len(strides), len(strides)))
    of_images = is_padding(size_of_images[0], hw_shape)
    longest = -(-max(hw_shape) // min(strides))
    shares = shares_of_grid(size_of_maps, grids, longest, max(max(x) for x in grid_sizes))
    paddings = []
    for own, (h, w), s, size in zip(shares, grid_sizes, strides, size_of_maps, strict=True):
        # A token with a valid pixel at its top left has one at all.
        mask = of_images[:, ::s, ::s]
        _, height, width = mask.shape
        rows, columns = own[:, 0, :height, :h], own[:, 1, :width, :w].contiguous()
        paddings.append(Padding(size, mask.flatten(1).unsqueeze(-1), rows, columns))
    return images.masked_fill(of_images.unsqueeze(1), 0), paddings
