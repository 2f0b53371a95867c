"""sparvar: fast next-scale (VAR) image generation as a torch.compile backend, without training."""

from sparvar.backend import attachment_of, compile, detach, reset
from sparvar.calibrate import calibrate
from sparvar.errors import (
    CaptureError,
    KernelError,
    OptionError,
    OutputError,
    PlanError,
    SessionError,
    SparvarError,
    SparvarWarning,
    WeightsError,
)
from sparvar.explain import Explanation, explain
from sparvar.options import Options
from sparvar.passes import fingerprint
from sparvar.scale_plans import Plan
from sparvar.version import __version__

__all__ = [
    "CaptureError",
    "Explanation",
    "KernelError",
    "OptionError",
    "Options",
    "OutputError",
    "Plan",
    "PlanError",
    "SessionError",
    "SparvarError",
    "SparvarWarning",
    "WeightsError",
    "__version__",
    "attachment_of",
    "calibrate",
    "compile",
    "detach",
    "explain",
    "fingerprint",
    "reset",
]
