"""What a calibration ends with: the plan with its figures, and the plans it is compared with."""

from __future__ import annotations

import dataclasses

import torch

from sparvar.calibrate.budget import Budget
from sparvar.calibrate.search.trials import Held, Trial
from sparvar.kernels import Gpu
from sparvar.scale_plans import Plan, Provenance, Thresholds, default_for, find_plan
from sparvar.version import __version__


def comparison_plans(base: Plan, shipped: bool = True) -> dict[str, Plan]:
    """The paper's fixed setting (SparVAR), and the ``shipped`` plan of the model where there is one."""
    plans = {"paper": default_for(base)}
    known = find_plan(base.model.fingerprint) if shipped else None
    if known is not None:
        plans["shipped"] = known
    return plans


def finished_plan(
    chosen: Trial, held: Held, thresholds: Thresholds, budget: Budget, gpu: Gpu | None, device: torch.device
) -> Plan:
    """The chosen plan with what was measured of it, and where."""
    measured = held.measured
    figures = {"psnr_db": round(measured.mean_psnr, 3), "predicted_psnr_db": round(held.psnr_db, 3)}
    if measured.mean_ssim is not None:
        figures["ssim"] = round(measured.mean_ssim, 4)
    if held.error is not None:
        figures["max_error"] = round(held.error, 4)
    if gpu is None:
        figures["seconds"] = round(measured.median_seconds, 4)
    figures["predicted_seconds"] = round(held.seconds, 6)
    stated = dataclasses.asdict(budget).items()
    asked = ", ".join(f"{name} {value:g}" for name, value in stated if value is not None)
    note = f"the cheapest found for {asked}"
    if chosen.plan.all_dense:
        note = f"all dense: no sparse plan met {asked}"
    if gpu is not None:
        note += f"; seconds are the roofline of {gpu.name}"
    return chosen.plan.replace(
        thresholds=thresholds,
        measured=figures,
        provenance=Provenance(
            calibrated=True,
            tool=f"sparvar {__version__} calibrate",
            torch=torch.__version__,
            device=str(device),
            note=note,
        ),
    )
