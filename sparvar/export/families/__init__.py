"""Model families, and how each exposes its generation as programs on explicit state."""

from sparvar.export.families.base import Call, Distribution, Family, Input, Kind, Noise, Schedule, State
from sparvar.export.families.find import FAMILIES, call_of, family_of
from sparvar.export.families.flexvar import FlexVarFamily
from sparvar.export.families.hart import HartFamily
from sparvar.export.families.infinity import InfinityFamily
from sparvar.export.families.landscape import LandscapeFamily
from sparvar.export.families.var import VarFamily

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
