"""Images of one domain as images of the other, with a trained pair: files, folders, and pictures in Python, of any size."""

from percepta.translating.files import Done, Job, translate_files
from percepta.translating.fitting import FITS, Fit
from percepta.translating.pipeline import TranslationPipeline, Translations

__all__ = ["FITS", "Done", "Fit", "Job", "TranslationPipeline", "Translations", "translate_files"]
