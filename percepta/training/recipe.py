"""Recipe: a method as a user asks for it, typed knobs with units and `build() -> Method`.

A recipe is one file in percepta/recipes/ with one subclass; listing the folder finds it. Settings that every run has are not knobs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from percepta.estimate import Denoise
from percepta.formulation import Denoiser, Formulation
from percepta.networks import PRESETS, Network, adapt, build, load_model
from percepta.objectives import Denoising, Term, Weight
from percepta.path import VarianceExploding
from percepta.training.augmenting import augmentation
from percepta.training.method import Method
from percepta.training.product import Sampled
from percepta.training.settings import Settings
from percepta.training.texts import Prompts

LATENT, LARGE = 4, 256  # channels of what a preset for latents reads, and the images whose latents those are


@dataclass(frozen=True)
class Context:
    """What a recipe builds for: the shape of its data (latents where there is a `vae`), some of it, and where it starts."""

    channels: int
    size: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    network: str | None = None
    init: Denoiser | None = None
    vae: Any = None
    init_vae: Any = None  # the autoencoder of the pipeline that --init names
    examples: Callable[[], Tensor] | None = None  # the first images, in [-1, 1]
    seed: int = 0  # of fresh weights
    micro_batch: int | None = None  # images that go through a network together
    domain: Callable[[], Path] | None = None  # trains, or finds, an encoder of the data (spaces.domain)
    latent_vgg: Callable[[], Path] | None = None  # the same for a network that reads the latents (spaces.latent_lpips)
    trains: bool = True  # False where a model is only built again, to be exported: what judges it may be far away
    prompts: Prompts | None = None  # the captions of the data, where --init reads text
    source_examples: Callable[[], Tensor] | None = None  # the first images of the domain that is translated, where there are two

    def in_latents(self, vae: Any) -> "Context":
        """What a network in the latents of `vae` reads, where the data are images."""
        if self.size % vae.factor:
            raise ValueError(f"--size {self.size} is no multiple of {vae.factor}, the pixels that a latent is wide")
        return replace(self, channels=vae.latent_channels, size=self.size // vae.factor, vae=vae)

    def check_init(self, formulation: Formulation) -> None:
        """Refuse to train --init under another meaning of its output."""
        if self.init is None:
            return
        was = self.init.formulation
        if (was.path, was.output) != (formulation.path, formulation.output):
            raise ValueError(
                f"--init predicts {was.output!r} on {was.path.to_config()}, this run asks for {formulation.output!r} on "
                f"{formulation.path.to_config()}: leave the flags away that differ, or choose the recipe that fits"
            )

    def chosen_network(self, default: str) -> Network:
        """The network of --init, or what --network names (a preset or a folder), or the recipe's default preset."""
        if self.init is not None:
            if self.network is not None:
                raise ValueError("--network and --init exclude each other: the network of --init is used")
            network = self.init.network
            assert isinstance(network, Network)
            return self._fitting(network, "--init")
        name = self.network or default
        if "/" in name or name.startswith("."):
            return self._fitting(adapt(load_model(name)), "--network")
        return build(name, channels=self.channels, size=self.size, num_classes=self.num_classes, seed=self.seed)

    def _fitting(self, network: Network, flag: str) -> Network:
        """A network from elsewhere, if it reads this data."""
        if network.in_channels != self.channels:
            raise ValueError(
                f"{flag} reads {network.in_channels} channels, the data has {self.channels}"
                + ("" if self.vae is not None else "; a latent model needs --vae")
            )
        if network.reads.needed and self.prompts is None:
            raise ValueError(
                f"{flag} is told {', '.join(network.reads.needed)} beside the image, which takes text encoders: give --init the whole pipeline, "
                "with its tokenizer and text_encoder, or use a model with class labels, or with no condition"
            )
        if network.num_classes != self.num_classes:
            raise ValueError(
                f"{flag} has {network.num_classes or 'no'} classes, the data has {self.num_classes or 'none'}: use "
                + ("data with the same classes" if network.num_classes else "--conditional no")
                + (", or --class-table new for a table of its classes" if self.num_classes and flag == "--init" else "")
            )
        if network.sample_size != self.size:
            network.resize(self.size)
        return network


Trained = Callable[[str, "Recipe", Settings], Path]  # (name, recipe, settings) -> its run, trained now or found


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Knobs are fields; `settings` is what this method changes in the defaults of every run."""

    name: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str]
    sampler: ClassVar[str] = "ddim"
    settings: ClassVar[Mapping[str, Any]] = {}
    latents_of_init: ClassVar[bool] = True  # a latent pipeline as --init brings the --vae
    size_of_init: ClassVar[bool] = False  # --size is what --init makes, unless it is given
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by name: other values of knobs and settings

    @abstractmethod
    def build(self, context: Context) -> Method: ...

    def settled(self, settings: Settings) -> tuple["Recipe", Settings]:
        """Knobs and settings that follow from each other, filled in; ValueError where they contradict each other."""
        return self, settings

    @property
    def translates(self) -> str | None:
        """The images of another domain that are trained on beside --data."""
        return None

    @property
    def stands_on(self) -> Mapping[str, Path | str]:
        """By flag, the folders of models that judge in its terms: what those were trained against, its own is too."""
        return {}

    def prepared(self, settings: Settings, trained: "Trained") -> "Recipe":
        """Train first what the method stands on (percepta.training.phases), and say where it is."""
        return self

    def check(self, settings: Settings) -> None:
        """Refuse, before images are read or latents encoded, what cannot be in a run of these settings. Flags alone are for __post_init__."""
        preset = PRESETS.get(settings.network or "")
        if preset is not None and preset.typical.channels == LATENT and settings.vae is None and settings.size >= LARGE:
            raise ValueError(
                f"--network {settings.network} is made for latents, and at --size {settings.size} it would read the pixels themselves: say "
                "in whose latents with --vae (a diffusers folder or a run of the recipe autoencoder), or train at a smaller --size"
            )

    def folder(self, settings: Settings) -> Path:
        """Where the run is."""
        return settings.out or Path("runs") / self.name

    def notes(self, settings: Settings) -> Iterable[str]:
        """What a user is told at the start of a run: what is left out here, and why."""
        return ()

    @property
    def lengths(self) -> frozenset[str]:
        """The knobs that say how long a run is, as --steps does, and so may differ where it goes on (--resume)."""
        return frozenset()

    def stated(self) -> Formulation | None:
        """What the flags alone say about the network of --init: needed where it is a bare model folder."""
        return None

    @classmethod
    def default_settings(cls) -> Settings:
        return replace(Settings(), **cls.settings)

    @classmethod
    def preset(cls, name: str) -> tuple["Recipe", Settings]:
        """Knobs and settings of a preset: what flags are then read on top of."""
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise ValueError(f"the recipe {cls.name} has no preset {name!r}; it has: {known}")
        knobs = {field.name for field in fields(cls)}
        chosen = cls.presets[name]
        own = {k: v for k, v in chosen.items() if k in knobs}
        return cls(**own), replace(cls.default_settings(), **{k: v for k, v in chosen.items() if k not in knobs})


def denoising_method(
    context: Context, formulation: Formulation, weight: Weight, cond_dropout: float, network: str, sampler: str = "ddim",
    more: Iterable[Term] = (), augment: float = 0.0,
) -> Method:  # fmt: skip
    """Plain diffusion: denoise, and judge x0_hat by its weighted squared error, and by what `more` there is.

    Images are altered with probability `augment` before they are noised, and are then what x0_hat is compared with.
    """
    if not 0 <= cond_dropout < 1:
        raise ValueError(f"--cond-dropout must lie in [0, 1), got {cond_dropout}")
    chosen = context.chosen_network(network)
    if dict(chosen.model.config).get("ncsn") and not isinstance(formulation.path, VarianceExploding):
        raise ValueError(
            "NCSN++ reads the logarithm of the noise level and cannot tell the times of other "
            "paths apart: take --predict edm (train edm), or ddpmpp in its place"
        )
    denoiser, altering = Denoiser(chosen, formulation), augmentation(augment, chosen, context.vae)
    shape, told = (context.channels, context.size, context.size), context.num_classes or context.prompts is not None
    product = Sampled(denoiser, shape, sampler, context.vae, context.class_names, prompts=context.prompts)
    estimate = Denoise(denoiser, cond_dropout if told else 0.0, augment=altering)
    return Method(denoiser, estimate, [Term("denoising", Denoising(), weight=weight), *more], product)
