"""Model families, and how each exposes its generation as programs on explicit state."""

from sparvar.models.base import Call, Distribution, Family, Input, Kind, Noise, Schedule, State
from sparvar.models.flexvar import FlexVarFamily, FlexVarSettings
from sparvar.models.hart import HartFamily, HartSettings
from sparvar.models.infinity import InfinityFamily, InfinitySettings
from sparvar.models.landscape import LandscapeFamily, LandscapeSettings
from sparvar.models.registry import FAMILIES, call_of, family_of
from sparvar.models.var import VarFamily, VarSettings

__all__ = [
    "FAMILIES",
    "Call",
    "Distribution",
    "Family",
    "FlexVarFamily",
    "FlexVarSettings",
    "HartFamily",
    "HartSettings",
    "InfinityFamily",
    "InfinitySettings",
    "Input",
    "Kind",
    "LandscapeFamily",
    "LandscapeSettings",
    "Noise",
    "Schedule",
    "State",
    "VarFamily",
    "VarSettings",
    "call_of",
    "family_of",
]
