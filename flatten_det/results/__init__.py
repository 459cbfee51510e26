"""What models say of images, as arrays: needs numpy and Pillow only, so that exported models give it, too."""

from .prediction import Prediction, Segment

__all__ = ["Prediction", "Segment"]
