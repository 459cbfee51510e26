"""The model that is served: its predictions for images as they were sent, and its attention."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import nn

from ..errors import UserError
from ..files.images import decoded
from ..lab.analysis.layers import AttentionLayer, LayerCall, attention_layers, calls_during
from ..lab.analysis.matrices import LayerWeights, own_attention, query_token
from ..predict.predictor import Predictor
from ..results import Prediction
from ..results.picture import default_palette

# Of the features of past images, from which attention maps are made.
CACHE_BYTES = 256 << 20
# Height and width of what is predicted for before the first request.
_FIRST_SIZE = (64, 64)
_COLOURS = colormaps["inferno"]
# Of the overlay, 0 to 255, where the weights are smallest, largest, and where there are none.
_LEAST_OPAQUE, _MOST_OPAQUE, _NOT_SEEN = 140, 225, 180


class ImageRefused(Exception):
    """There is no prediction, or attention, for an image; the message says why."""


class UnknownImage(Exception):
    """An image that was named, and is not remembered."""


@dataclass(frozen=True)
class AttentionMap:
    """What a query gives to all keys.

    Attributes:
        weights: (height, width) of the map of the keys, NaN outside of the query's window.
        query: x and y in the image.
    """

    weights: np.ndarray
    query: tuple[int, int]

    def range(self) -> tuple[float, float]:
        """The smallest and the largest weight."""
        return float(np.nanmin(self.weights)), float(np.nanmax(self.weights))

    def overlay(self) -> Image.Image:
        """RGBA, a pixel for each key, to be laid over the image: the brighter, the larger is the weight."""
        least, most = self.range()
        shares = np.nan_to_num((self.weights - least) / (most - least or 1))
        pixels = _COLOURS(shares, bytes=True)
        pixels[..., 3] = _LEAST_OPAQUE + shares * (_MOST_OPAQUE - _LEAST_OPAQUE)
        pixels[np.isnan(self.weights)] = (0, 0, 0, _NOT_SEEN)
        return Image.fromarray(pixels)


class ServedModel:
    """A predictor for images as they were sent; used by one thread at a time.

    Args:
        predictor: of arrays in BGR.
        name: what the model is called.
        cache_bytes: of features that are kept for attention maps, besides those of the last image.

    Attributes:
        task: ``detection``, ``instance``, ``semantic`` or ``panoptic``.
        names: of the classes, by label.
        palette: RGB by label.
        layers: whose attention can be seen, by name.
        heads: how many each layer has.

    Raises:
        UserError: the model fails on an image.
    """

    def __init__(self, predictor: Predictor, name: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.name = name
        self._predictor = predictor
        self._cache_bytes = cache_bytes
        self._seen: OrderedDict[str, _Features] = OrderedDict()
        # Of the layer that was looked at last.
        self._last: tuple[LayerCall, LayerWeights] | None = None
        # The first prediction takes longer than others, and shows what the model gives.
        (first,) = predictor([np.zeros((*_FIRST_SIZE, 3), np.uint8)])
        self.task = _task_of(first)
        self.names = first.names
        self.palette = [
            tuple(map(int, colour)) for colour in first.palette or default_palette(len(self.names))
        ]
        self.layers: Mapping[str, AttentionLayer] = _layers_of(predictor.model)
        self.heads = {name: layer.heads for name, layer in self.layers.items()}

    def predict(self, content: bytes) -> Prediction:
        """The prediction for an image; ImageRefused if it cannot be decoded, or is too narrow."""
        pixels = decoded(content)
        if pixels is None:
            raise ImageRefused("the image cannot be decoded: it is damaged")
        try:
            (prediction,) = self._predictor([pixels])
        except UserError as error:
            raise ImageRefused(str(error)) from error
        return prediction

    def attention(
        self, image: bytes | str, layer: str, head: int, query: tuple[int, int]
    ) -> AttentionMap:
        """What a layer's head gives to all keys, for the query at a pixel.

        Args:
            image: an image, or the digest of one that was given before.
            layer: one of ``layers``.
            head: below the number of heads of the layer.
            query: x and y of the pixel.

        Raises:
            UnknownImage: there is no image of this digest any more.
            ImageRefused: as of :meth:`predict`, or the pixel is not in the image, or the model does not see
                the image as a whole.
        """
        features = self._features(image)
        height, width = features.image_size
        (x, y), call = query, features.calls[layer]
        if not (0 <= x < width and 0 <= y < height):
            raise ImageRefused(f"pixel {x}, {y} is not in the image of {width} x {height} pixels")
        point = ((x + 0.5) / width, (y + 0.5) / height)
        token = query_token(point, call.hw_shape)
        if self._last is None or self._last[0] is not call:
            self._last = None  # Its memory, before the next one's.
            self._last = (call, LayerWeights(call, own_attention))
        (found,) = self._last[1].maps(head, token)
        return AttentionMap(found.weights, query)

    def _features(self, image: bytes | str) -> "_Features":
        key = image if isinstance(image, str) else digest(image)
        features = self._seen.pop(key, None)
        if features is None:
            if isinstance(image, str):
                raise UnknownImage
            features = self._look_at(image)
        self._seen[key] = features
        while len(self._seen) > 1 and sum(f.bytes for f in self._seen.values()) > self._cache_bytes:
            self._seen.popitem(last=False)
        return features

    def _look_at(self, content: bytes) -> "_Features":
        predictions: list[Prediction] = []
        try:
            calls = calls_during(
                lambda: predictions.append(self.predict(content)), self.layers.values()
            )
        except ValueError as error:
            raise ImageRefused(
                f"the model looks at parts of this image one by one, so that none attends to all: {error}"
            ) from error
        (prediction,) = predictions
        # What the layers give is not needed.
        kept = {call.layer.name: replace(call, output=call.output[:0].clone()) for call in calls}
        return _Features(prediction.size, kept)


@dataclass(frozen=True)
class _Features:
    """What the attention layers see of an image."""

    image_size: tuple[int, int]
    calls: Mapping[str, LayerCall]

    @property
    def bytes(self) -> int:
        return sum(call.tokens.nbytes for call in self.calls.values())


def digest(content: bytes) -> str:
    """What an image is called."""
    return hashlib.sha256(content).hexdigest()


def _task_of(prediction: Prediction) -> str:
    if prediction.segments is not None:
        return "panoptic"
    if prediction.label_map is not None:
        return "semantic"
    return "detection" if prediction.masks is None else "instance"


def _layers_of(model: nn.Module) -> dict[str, AttentionLayer]:
    try:
        layers = attention_layers(model.backbone)
    except (UserError, AttributeError):  # Other attention, or none.
        return {}
    return {layer.name: layer for layer in layers}
