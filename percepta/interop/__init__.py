"""diffusers pipelines in and out; foreign weights in, without running pickled code."""

from percepta.interop.convert import FAMILIES, Foreign, convert
from percepta.interop.export import export_pipeline, plan_export
from percepta.interop.folders import find_folder
from percepta.interop.load import Pipeline, UnknownMeaning, load_pipeline
from percepta.interop.schedules import SamplerDefaults, formulation_of, scheduler_for
from percepta.interop.text import TextSide, find_text

__all__ = [
    "FAMILIES",
    "Foreign",
    "Pipeline",
    "SamplerDefaults",
    "TextSide",
    "UnknownMeaning",
    "convert",
    "export_pipeline",
    "find_folder",
    "find_text",
    "formulation_of",
    "load_pipeline",
    "plan_export",
    "scheduler_for",
]
