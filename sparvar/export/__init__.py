"""Export: a model and a plan become an artefact of programs that run without either."""

from sparvar.export.builder import FORMATS, Export, export_artefact
from sparvar.export.formats.tensorrt_format import tensorrt_coverage
from sparvar.models import FAMILIES, Family, family_of
from sparvar.models.resolve import load_exportable

__all__ = [
    "FAMILIES",
    "FORMATS",
    "Export",
    "Family",
    "export_artefact",
    "family_of",
    "load_exportable",
    "tensorrt_coverage",
]
