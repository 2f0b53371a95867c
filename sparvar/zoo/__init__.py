"""Models that ship with the project; they know nothing of the rest of it."""

from sparvar.zoo.model import CLASSES, LandscapeVAR
from sparvar.zoo.shaped import SHAPES, ShapedVAR, shaped
from sparvar.zoo.weights import LandscapeWeightsError, landscape

__all__ = [
    "CLASSES",
    "SHAPES",
    "LandscapeVAR",
    "LandscapeWeightsError",
    "ShapedVAR",
    "landscape",
    "shaped",
]
