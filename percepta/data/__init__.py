"""Images for training and evaluation: sources that can be read at any index, and the stream that is a function of (seed, place)."""

from percepta.data.image import BadImage, Decoded, Reading, read_image
from percepta.data.open import open_pairs, open_source
from percepta.data.shapes import Shapes
from percepta.data.source import Item, Pairs, Source
from percepta.data.stream import Stream
from percepta.data.transforms import Transform

__all__ = [
    "BadImage",
    "Decoded",
    "Item",
    "Pairs",
    "Reading",
    "Shapes",
    "Source",
    "Stream",
    "Transform",
    "open_pairs",
    "open_source",
    "read_image",
]
