"""What the server answers, as it is described in its OpenAPI document."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..results import Prediction
from ..results.rle import encode_labels
from .served_model import AttentionMap, ServedModel
from .uploads import Limits

_MASK = {"size": [4, 6], "counts": "5220;"}


class Mask(BaseModel):
    """A mask as COCO's run lengths, column by column."""

    size: tuple[int, int] = Field(description="height and width of the image")
    counts: str


class SegmentAnswer(BaseModel):
    """A segment of a panoptic prediction."""

    id: int
    label: int
    class_name: str
    area: int = Field(description="pixels")
    mask: Mask


class ClassAnswer(BaseModel):
    """A class of a semantic prediction."""

    label: int
    name: str
    share: float = Field(description="of the image's pixels, 0 to 1")
    mask: Mask | None = Field(description="null if no pixel has the class")


class Milliseconds(BaseModel):
    """Where the time went."""

    waiting: float = Field(description="for other requests")
    model: float
    total: float = Field(description="from when the image had come: decoding and encoding too")


class PredictionAnswer(BaseModel):
    """A prediction in the image's pixels. Lists of objects are parallel, the best ones first.

    Detectors give the first lists, those of instances ``masks`` too; segmentors ``classes``; panoptic models
    ``segments``, too. What a model does not give is null.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "height": 4,
                    "width": 6,
                    "labels": [2],
                    "class_names": ["triangle"],
                    "scores": [0.93],
                    "bboxes": [[1.0, 1.0, 3.0, 3.0]],
                    "masks": [_MASK],
                    "segments": None,
                    "classes": None,
                    "milliseconds": {"waiting": 0.1, "model": 41.5, "total": 43.0},
                }
            ]
        }
    )

    image: str = Field(description="digest of the image, for /attention")
    height: int
    width: int
    labels: list[int] | None = None
    class_names: list[str] | None = None
    scores: list[float] | None = None
    bboxes: list[tuple[float, float, float, float]] | None = Field(
        None, description="x1, y1, x2, y2"
    )
    masks: list[Mask] | None = None
    segments: list[SegmentAnswer] | None = None
    classes: list[ClassAnswer] | None = None
    milliseconds: Milliseconds


class LayerAnswer(BaseModel):
    """A layer whose attention can be seen."""

    name: str = Field(description="STAGE.BLOCK, both from 1")
    kind: str
    heads: int


class NamedClass(BaseModel):
    """A class that the model knows."""

    name: str
    colour: tuple[int, int, int] = Field(description="red, green, blue")


class LimitsAnswer(BaseModel):
    """What an image may be."""

    upload_bytes: int
    pixels: int


class ModelAnswer(BaseModel):
    """The model that is served."""

    name: str
    task: str = Field(description="detection, instance, semantic or panoptic")
    classes: list[NamedClass] = Field(description="by label")
    layers: list[LayerAnswer]
    limits: LimitsAnswer


class AttentionAnswer(BaseModel):
    """The weights that the query at a pixel gives to all keys of a layer."""

    layer: str
    head: int
    x: int
    y: int
    height: int = Field(description="of the map of the keys")
    width: int
    weights: list[list[float | None]] = Field(
        description="rows of the map; null outside of the query's window"
    )


class HealthAnswer(BaseModel):
    """That the server takes requests."""

    status: str = "ok"
    waiting: int = Field(description="requests")


class ErrorAnswer(BaseModel):
    """Why there is no other answer."""

    detail: str


def prediction_answer(
    prediction: Prediction, image: str, milliseconds: Milliseconds
) -> PredictionAnswer:
    """The answer for a prediction, all detections of it."""
    content: dict[str, Any] = prediction.to_dict()
    if prediction.segments is not None:
        masks = encode_labels(prediction.segment_ids)
        for segment in content["segments"]:
            segment["mask"] = masks[segment["id"]]
        # A panoptic model's label map says the same again.
        content.pop("classes", None)
    elif prediction.label_map is not None:
        masks = encode_labels(prediction.label_map)
        for each in content["classes"]:
            each["mask"] = masks.get(each["label"])
    return PredictionAnswer(**content | {"image": image, "milliseconds": milliseconds})


def model_answer(served: ServedModel, limits: Limits) -> ModelAnswer:
    """The answer about the model."""
    classes = zip(served.names, served.palette, strict=False)
    return ModelAnswer(
        name=served.name,
        task=served.task,
        classes=[NamedClass(name=name, colour=colour) for name, colour in classes],
        layers=[
            LayerAnswer(name=name, kind=type(layer.module).__name__, heads=served.heads[name])
            for name, layer in served.layers.items()
        ],
        limits=LimitsAnswer(upload_bytes=limits.upload_bytes, pixels=limits.pixels),
    )


def attention_answer(layer: str, head: int, found: AttentionMap) -> AttentionAnswer:
    """The answer with a map's numbers."""
    height, width = found.weights.shape
    rows = [[None if w != w else float(f"{w:.6g}") for w in row] for row in found.weights.tolist()]
    x, y = found.query
    return AttentionAnswer(
        layer=layer, head=head, x=x, y=y, height=height, width=width, weights=rows
    )
