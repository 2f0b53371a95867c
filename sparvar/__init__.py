"""sparvar: fast next-scale (VAR) image generation as a torch.compile backend, without training."""

from typing import TYPE_CHECKING

from sparvar.lazy import exports
from sparvar.version import __version__

if TYPE_CHECKING:
    from sparvar.artefact.session import Artefact, load
    from sparvar.artefact.verify import verify
    from sparvar.backend import attachment_of, compile, detach, reset
    from sparvar.calibrate import calibrate
    from sparvar.compiler.explain import Explanation, explain
    from sparvar.errors import (
        ArtefactError,
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
    from sparvar.export import export_artefact
    from sparvar.models.fingerprint import fingerprint
    from sparvar.options import Options
    from sparvar.runtime.two_models import collaborate
    from sparvar.scale_plans import Plan
else:
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Artefact": "sparvar.artefact.session",
            "ArtefactError": "sparvar.errors",
            "CaptureError": "sparvar.errors",
            "Explanation": "sparvar.compiler.explain",
            "KernelError": "sparvar.errors",
            "OptionError": "sparvar.errors",
            "Options": "sparvar.options",
            "OutputError": "sparvar.errors",
            "Plan": "sparvar.scale_plans",
            "PlanError": "sparvar.errors",
            "SessionError": "sparvar.errors",
            "SparvarError": "sparvar.errors",
            "SparvarWarning": "sparvar.errors",
            "WeightsError": "sparvar.errors",
            "attachment_of": "sparvar.backend",
            "calibrate": "sparvar.calibrate",
            "collaborate": "sparvar.runtime.two_models",
            "compile": "sparvar.backend",
            "detach": "sparvar.backend",
            "explain": "sparvar.compiler.explain",
            "export_artefact": "sparvar.export",
            "fingerprint": "sparvar.models.fingerprint",
            "load": "sparvar.artefact.session",
            "reset": "sparvar.backend",
            "verify": "sparvar.artefact.verify",
        },
    )

__all__ = [
    "Artefact",
    "ArtefactError",
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
    "collaborate",
    "compile",
    "detach",
    "explain",
    "export_artefact",
    "fingerprint",
    "load",
    "reset",
    "verify",
]
