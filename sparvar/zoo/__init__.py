"""Models that ship with the project; they know nothing of the rest of it."""

from sparvar.zoo.model import CLASSES, LandscapeVAR
from sparvar.zoo.weights import LandscapeWeightsError, landscape

__all__ = ["CLASSES", "LandscapeVAR", "LandscapeWeightsError", "landscape"]
