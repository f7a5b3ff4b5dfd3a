"""diffusers pipelines in and out; foreign weights in, without running pickled code."""

from percepta.interop.convert import FAMILIES, Foreign, convert
from percepta.interop.export import export_pipeline, plan_export
from percepta.interop.load import Pipeline, UnknownMeaning, find_folder, load_pipeline
from percepta.interop.schedules import SamplerDefaults, formulation_of, scheduler_for

__all__ = [
    "FAMILIES",
    "Foreign",
    "Pipeline",
    "SamplerDefaults",
    "UnknownMeaning",
    "convert",
    "export_pipeline",
    "find_folder",
    "formulation_of",
    "load_pipeline",
    "plan_export",
    "scheduler_for",
]
