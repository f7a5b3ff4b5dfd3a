"""What a model's own configuration cannot say: how many of its labels are classes, in which unit it reads time, how many heads
attend, at which size it went on.

A class table of N + 1 rows may hold N + 1 classes, or N classes and the null label that guidance needs; improved-diffusion
embeds the times of a 4000-step path on a scale of 1000, and has four heads at every width, where UNet2DModel knows one head
width. These facts lie in the model's config.json under the key "_percepta", written by diffusers' own save_pretrained. Keys
with a leading underscore are private there: a plain diffusers loads the folder without a word about it.
"""

from dataclasses import asdict, dataclass
from typing import Any

KEY = "_percepta"


@dataclass(frozen=True)
class Facts:
    """`num_classes` counts true classes; the network reads time * `time_factor`; `num_heads` is the number of heads of every
    attention layer of a UNet2DModel; `frequency_shift` is the spacing of a DiT's time frequencies, 10000^(-i/(128 - shift)):
    0 in the published code, 1 in diffusers. `sample_size` is the size that a DiT makes now, where its configuration must go on to name
    the one it was made for (percepta.networks.positions). None: the model's own configuration decides. A plain diffusers pipeline ignores
    all but the classes: a model that needs them is exported with a pipeline of its own (percepta.interop).
    """

    num_classes: int | None = None
    time_factor: float = 1.0
    num_heads: int | None = None
    frequency_shift: float | None = None
    sample_size: int | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes counts classes, got {self.num_classes}; leave it out for an unconditional network")
        if not self.time_factor > 0:
            raise ValueError(f"time_factor multiplies the network's time and is positive, got {self.time_factor}")


def facts_of(model: Any) -> Facts:
    """The facts stored with a model; the defaults for a model that never met Percepta."""
    stored = dict(model.config).get(KEY, {})
    unknown = set(stored) - set(Facts.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"the model's config.json has entries under {KEY!r} that this version does not know: "
            f"{', '.join(sorted(unknown))}; it was written by a newer Percepta"
        )
    return Facts(**stored)


def remember(model: Any, facts: Facts) -> None:
    """Store facts in the model's configuration, so that save_pretrained keeps them; defaults are not written."""
    default = asdict(Facts())
    stored = {name: value for name, value in asdict(facts).items() if value != default[name]}
    if stored or KEY in dict(model.config):
        model.register_to_config(**{KEY: stored})
