"""Model families, and how each exposes its generation as programs on explicit state."""

from sparvar.models.base import Call, Distribution, Family, Input, Kind, Noise, Schedule, State
from sparvar.models.flexvar import FlexVarFamily
from sparvar.models.hart import HartFamily
from sparvar.models.infinity import InfinityFamily
from sparvar.models.landscape import LandscapeFamily
from sparvar.models.registry import FAMILIES, call_of, family_of
from sparvar.models.var import VarFamily

__all__ = [
    "FAMILIES",
    "Call",
    "Distribution",
    "Family",
    "FlexVarFamily",
    "HartFamily",
    "InfinityFamily",
    "Input",
    "Kind",
    "LandscapeFamily",
    "Noise",
    "Schedule",
    "State",
    "VarFamily",
    "call_of",
    "family_of",
]
