"""Non-leaking augmentation in a recipe: which networks can be told of it."""

from percepta.data.augment import LABEL, Augment
from percepta.estimate import AUGMENT_LABELS
from percepta.networks import PRESETS, Network
from percepta.networks.ddpmpp import DDPMPP


def augmentation(p: float, network: Network, vae: object | None = None) -> Augment | None:
    """What Denoise takes as `augment`; None for probability 0. ValueError where the network cannot be told."""
    augment = Augment(p)
    if p == 0:
        return None
    if vae is not None:
        raise ValueError("--augment alters images, and with --vae latents are trained: leave one of the two away")
    width = network.reads.optional.get(AUGMENT_LABELS)
    if width != LABEL:
        ours = ", ".join(name for name, preset in PRESETS.items() if preset.cls is DDPMPP)
        raise ValueError(
            f"--augment tells the network by {LABEL} numbers what was done to an image, and this {network.family.name} reads "
            f"{width or 'none'}: use --network {ours}, or a DDPMPP built with augment_dim={LABEL}, or leave --augment away"
        )
    return augment
