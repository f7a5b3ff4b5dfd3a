"""Images for training and evaluation: sources that can be read at any index, and the stream that is a function of (seed, place)."""

from percepta.data.augment import Augment
from percepta.data.domains import Domains, Partners, find_domains, paired, partners
from percepta.data.image import BadImage, Decoded, Reading, read_image
from percepta.data.open import open_pairs, open_source
from percepta.data.shapes import Shapes
from percepta.data.source import Item, Pairs, Source
from percepta.data.splitting import split_domains
from percepta.data.stream import Stream
from percepta.data.transforms import Transform

__all__ = [
    "Augment",
    "BadImage",
    "Decoded",
    "Domains",
    "Item",
    "Pairs",
    "Partners",
    "Reading",
    "Shapes",
    "Source",
    "Stream",
    "Transform",
    "find_domains",
    "open_pairs",
    "open_source",
    "paired",
    "partners",
    "read_image",
    "split_domains",
]
