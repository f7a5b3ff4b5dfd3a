"""Who plays in a run: the model, and the critics that it trains against. Whose curves are whose, and what the terms of a translator are called.

A run that logs "critic/NAME" has a critic NAME: its loss, what is told of it ("NAME/fooled") and its gradient norm are its own, all the rest is the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from percepta.reports.run import Run

CRITIC, NORM, SHARE = "critic/", "grad_norm/", "share/"
MODEL = "model"
TRANSLATOR = "ladiffgan"
OF_DOMAIN = {  # name of a term of one domain -> what readers are told, of the domain that it makes and of the way there
    "adversarial": ("Fooling the critic of {to}", "images translated {way}, as its critic sees them"),
    "latent-gan": ("Latents like those of {to}", "images translated {way}, seen in noised latents"),
    "denoising": ("Denoised as {to}", "images translated {way}, under {to}'s frozen diffusion model, told the source's latent"),
}
TERMS = {
    "cycle": ("There and back", "how far an image is from itself after A → B → A, and B → A → B"),
    "identity": ("Leaving alone what is there", "how far an image of the target domain is changed"),
    "cam": ("Attention classifier", "whether a generator's attention tells its source domain from the other"),
    "reconstruction": ("Reconstruction", "how far an image is from itself after its own domain's autoencoder"),
    "vgg": ("Like its source to VGG16", "translation and source, each channel of the features normalised"),
    "kl": ("Latents near N(0, 1)", "of the images"),
    "kl-cycle": ("Latents near N(0, 1), on the way back", "of the translations"),
    "style": ("Style found again", "in the translation that was made with it"),
    "content": ("Content found again", "in the translation that was made of it"),
}
OF_CRITIC = {"adversarial": "Critic of {to}", "latent-gan": "Latent critic of {to}"}
TOLD = {
    "fooled": ("Taken for real", "part of the made images that it takes for real"),
    "T": ("Noise on what it sees", "Diffusion-GAN's T, from 10 to 1000 steps"),
}


@dataclass(frozen=True)
class Player:
    """`name`: MODEL, or the term whose critic it is."""

    name: str
    title: str
    about: str


def players(runs: Sequence[Run], keys: Sequence[str]) -> list[Player]:
    """The model first, then the critics in the order of their turns; nothing where there is no critic."""
    critics = [key.removeprefix(CRITIC) for key in keys if key.startswith(CRITIC)]
    if not critics:
        return []
    translators = all(run.recipe == TRANSLATOR for run in runs)
    title = "Generators" if translators else "Model"
    about = (
        "What both generators together are held to, each with its weight."
        if translators
        else "What it is held to beside its own loss."
    )
    return [Player(MODEL, title, about), *(_critic(name, translators) for name in critics)]


def _critic(name: str, translator: bool) -> Player:
    kind, _, domain = name.rpartition("/")
    if not translator or kind not in OF_CRITIC or domain not in ("a", "b"):
        return Player(name, f"Critic of {name}", "It is trained in turns with the model, to tell made from real.")
    what = "noised latents of images" if kind == "latent-gan" else "images"
    other = "B → A" if domain == "a" else "A → B"
    return Player(
        name, OF_CRITIC[kind].format(to=domain.upper()), f"It tells {what} of {domain.upper()} from those translated {other}."
    )


def owner(key: str, names: Sequence[str]) -> str:
    """The player that a key of the log is about; a loss of the model that is named like its critic is the model's."""
    bare = key.removeprefix(NORM)
    for name in names:
        if name != MODEL and (key == CRITIC + name or bare == name != key or key.startswith(f"{name}/")):
            return name
    return MODEL


def worded(key: str, translator: bool) -> tuple[str, str]:
    """(title, what it is) of a curve; of other methods than translation the term's own name."""
    told = key.rpartition("/")[2]
    if key.startswith(CRITIC):
        return "Its loss", ""
    if key.startswith(NORM):
        return "Gradient norm", "before clipping"
    if told in TOLD and "/" in key:
        return TOLD[told]
    if key.startswith("weight/"):
        title, _ = worded(key.removeprefix("weight/"), translator)
        return f"Weight: {title}", ""
    if not translator:
        return key, ""
    kind, _, domain = key.rpartition("/")
    if kind in OF_DOMAIN and domain in ("a", "b"):
        to, way = domain.upper(), "B → A" if domain == "a" else "A → B"
        title, about = OF_DOMAIN[kind]
        return title.format(to=to), about.format(to=to, way=way)
    return TERMS.get(key, (key, ""))
