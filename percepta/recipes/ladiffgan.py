"""LaDiffGAN (2024): unpaired translation by a GAN that latent diffusion models supervise. The generators alone are needed afterwards.

    G, F:  critics of images + cycle + identity (+ CAM) + critics of noised latents + |eps - eps_d(noised E_d(G(x)), t, E_s(x))|^2

First an autoencoder per domain, then a diffusion model of each domain's latents that is told the other's latent of the same image; then the GAN, in front of
all of them, frozen. What the paper's two diffusion losses are in detail is not public: docs/interpretation.md says what is ours, and the alternatives are flags.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from percepta.absent import absent
from percepta.data.domains import Domains, find_domains
from percepta.data.open import is_shapes, open_source
from percepta.data.transforms import still
from percepta.estimate import Translate
from percepta.networks import Autoencoder, load_autoencoder
from percepta.networks.critics import MultiscaleCritic, PatchCritic, UgatitCritic
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.latent_critic import LatentCritic, depth_for
from percepta.networks.latent_prior import load_prior, prior_folder
from percepta.networks.munit import MunitPair
from percepta.networks.translation import Direction, Pair
from percepta.networks.ugatit import UgatitPair
from percepta.networks.unit import UnitPair
from percepta.objectives import Term
from percepta.objectives.adversarial import Adversarial
from percepta.objectives.diffused import DiffusedAdversarial
from percepta.objectives.prior import Between, ConditionalDenoising, LatentDiffusionGan, LatentMatching
from percepta.objectives.translation import CYCLE, IDENTITY, RECONSTRUCTION, Alike, AlikeInside, Cam, MeanSquare
from percepta.path import LinearBeta
from percepta.recipes.autoencoder import TrainAutoencoder
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.prior import TrainPrior
from percepta.spaces.trunks import TRUNKS, Trunk, first_weights, has_trunk
from percepta.training.data import vae_folder
from percepta.training.method import Method
from percepta.training.phases import denoiser_of
from percepta.training.recipe import Context, Recipe, Trained
from percepta.training.settings import Settings
from percepta.training.translated import Translated

PAPER: Mapping[str, Any] = {"size": 256, "steps": 1_000_000, "autoencoder_steps": 100_000, "prior_steps": 200_000}
PRESETS = dict.fromkeys(("selfie2anime", "cat2dog", "horse2zebra", "vangogh2photo"), PAPER) | {
    "pocket": {"size": 32, "steps": 2000, "batch": 8, "lr": 2e-4, "autoencoder_steps": 1500, "prior_steps": 1500, "crop": "center-crop"},
}  # fmt: skip
STYLES = (("style_ab", "style_draw_b"), ("style_ba", "style_draw_a"))
CONTENTS = (("content_ab", "content_a"), ("content_ba", "content_b"))
Weighted = tuple[tuple[str, Any, float], ...]
LOSSES: Mapping[str, Weighted] = {  # beside the critics, with the published weights
    "ugatit": (("cycle", Alike(CYCLE), 10.0), ("identity", Alike(IDENTITY), 10.0), ("cam", Cam(), 1000.0)),
    "cyclegan": (("cycle", Alike(CYCLE), 10.0), ("identity", Alike(IDENTITY), 5.0)),
    "unit": (
        ("reconstruction", Alike(RECONSTRUCTION), 10.0), ("cycle", Alike(CYCLE), 10.0), ("kl", MeanSquare(("mu_a", "mu_b")), 0.01),
        ("kl-cycle", MeanSquare(("mu_cycle_a", "mu_cycle_b")), 0.01),
    ),
    "munit": (
        ("reconstruction", Alike(RECONSTRUCTION), 10.0), ("cycle", Alike(CYCLE), 0.0), ("style", Alike(STYLES), 1.0),
        ("content", Alike(CONTENTS), 1.0),
    ),
}  # fmt: skip
# px from which there is a loss in VGG16, of weight 1: UNIT has it at 256, and below 32 nothing is left to compare
INSIDE = {"unit": 32, "munit": 512}
RELU5_3 = 29  # in VGG16's features
BUILT_IN = "shapes"
STEPS = 1000  # of the diffusion that supervises
SEEN = 32  # px: perceptual networks see nothing in smaller images
PHASE = ("seed", "device", "mixed_precision", "workers", "data_memory", "cache", "dist_timeout", "flip", "on_bad_image")


@dataclass(frozen=True, kw_only=True)
class TrainLadiffgan(Recipe):
    """Translate between two domains of unpaired images, supervised by latent diffusion models of both."""

    name = "ladiffgan"
    summary = "unpaired translation by a GAN (U-GAT-IT, CycleGAN, UNIT, MUNIT) that latent diffusion supervises"
    example = "percepta train ladiffgan --source ./photos --target ./paintings"
    settings = MappingProxyType({
        "batch": 1, "steps": 100_000, "optimizer": "adam", "lr": 1e-4, "betas": (0.5, 0.999), "weight_decay": 1e-4, "clip": None,
        "ema": "none", "lr_schedule": "late-linear", "flip": True, "crop": "jitter", "sample_num": 24, "checkpoint_every": 1000, "sample_every": 1000,
    })  # fmt: skip
    presets = MappingProxyType(PRESETS)

    source: str = BUILT_IN
    """Images of the domain that is translated (A), as --data takes them; or, without --target, a folder with trainA and trainB (testA and testB)."""
    target: str | None = None
    """Images of the domain that they become (B)."""
    generator: Literal["ugatit", "cyclegan", "unit", "munit"] = "ugatit"
    """Whose generators, critics and losses."""
    channels: int | None = None
    """Width of generators and critics. Default: 64 from 128 px up, half the side below."""
    blocks: int | None = None
    """Residual blocks of a generator. Default: as published."""
    light: bool = True
    """ugatit: without the fully connected layers that bind it to one size of image."""

    cycle_weight: float | None = None
    """Weight of coming back. Default: as published, 10, and none for munit."""
    identity_weight: float | None = None
    """Weight of leaving alone what is of the target domain already (ugatit, cyclegan). Default: as published."""
    cam_weight: float | None = None
    """ugatit: weight of its attention classifier. Default: 1000. Less where the two domains have the same shapes."""
    vgg_weight: float | None = None
    """unit, munit: weight of what VGG16 sees in a translation and its source, each channel normalised. Default, where its weights are on this machine: 1, for
    unit from 32 px up, for munit from 512."""
    diffusion_gan: bool = False
    """The critics see noised images, as much as they can bear (Diffusion-GAN): what LaDiffGAN is compared with."""

    latent_gan: Literal["A", "B", "none"] = "A"
    """A: a critic compares noised latents of translations and of real images. B: the frozen diffusion model's features are compared."""
    latent_gan_weight: float = 1.0
    """Its weight."""
    latent_gan_share: float | None = None
    """The part of the gradient's norm that it is to have: its weight follows. Default: the weight stays."""
    denoising: Literal["A", "B", "C", "none"] = "A"
    """A: the frozen model denoises the translation's latent, told the source image's. B: it denoises real latents, told a translation's. C: as A, by score
    distillation."""
    denoising_weight: float = 1.0
    """Its weight."""
    denoising_share: float | None = None
    """The part of the gradient's norm that it is to have: its weight follows. Default: the weight stays."""
    latent_times: str = "0:1"
    """Noise levels of the latent GAN, as fractions of the 1000 steps."""
    denoising_times: str = "0.02:0.8"
    """Noise levels of the denoising loss."""

    perceptual: Literal["auto", "alex", "squeeze", "vgg16", "vgg19", "none"] = "auto"
    """Perceptual loss of the autoencoders, from 32 px up: see the recipe autoencoder."""
    autoencoder_steps: int = 20_000
    """Steps of each domain's autoencoder, the first phase."""
    prior_steps: int = 20_000
    """Steps of each domain's diffusion model, the second phase."""
    autoencoder_a: Path | None = None
    """A trained autoencoder of A. Default: trained first, and found again."""
    autoencoder_b: Path | None = None
    """The same of B."""
    prior_a: Path | None = None
    """A trained diffusion model of A, told latents of B: a run of the recipe prior. Default: trained, and found again."""
    prior_b: Path | None = None
    """The same of B."""
    features_a: Path | None = None
    """--latent-gan B: a run of ddpm in the latents of A, whose features are compared. Default: trained, and found again."""
    features_b: Path | None = None
    """The same of B."""

    def __post_init__(self) -> None:
        for flag in ("cycle_weight", "identity_weight", "cam_weight", "vgg_weight", "latent_gan_weight", "denoising_weight"):
            value = getattr(self, flag)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"--{flag.replace('_', '-')} must be 0 or more, got {value:g}")
        known = {name for name, *_ in LOSSES[self.generator]} | ({"vgg"} if self.generator in INSIDE else set())
        for flag, loss in (("identity_weight", "identity"), ("cam_weight", "cam"), ("vgg_weight", "vgg")):
            if getattr(self, flag) is not None and loss not in known:
                raise ValueError(
                    f"--{flag.replace('_', '-')} is not among the losses of --generator {self.generator}: {', '.join(sorted(known))}"
                )
        for flag in ("latent_gan_share", "denoising_share"):
            value = getattr(self, flag)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"--{flag.replace('_', '-')} is a part of the gradient's norm, between 0 and 1, got {value:g}")
        if self.channels is not None and (self.channels < 2 or self.channels % 2):
            raise ValueError(f"--channels is even, 2 or more, got {self.channels}")
        for flag in ("autoencoder_steps", "prior_steps"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be 1 or more, got {getattr(self, flag)}")
        if not self.light and self.generator != "ugatit":
            raise ValueError(f"--no-light belongs to --generator ugatit, and this is {self.generator}: leave it away")
        if sum(filter(None, (self.latent_gan_share, self.denoising_share))) >= 1:
            raise ValueError(
                f"--latent-gan-share {self.latent_gan_share:g} and --denoising-share {self.denoising_share:g} leave the critics nothing: together below 1"
            )
        for flag, times in (("latent-times", self.latent_times), ("denoising-times", self.denoising_times)):
            try:
                Between.read(times).steps(STEPS)
            except ValueError as error:
                raise ValueError(f"--{flag}: {error}") from error

    @property
    def matches(self) -> bool:
        """Whether latents are compared; a loss of no weight needs no phases."""
        return self.latent_gan != "none" and self.latent_gan_weight > 0

    @property
    def denoises(self) -> bool:
        return self.denoising != "none" and self.denoising_weight > 0

    @property
    def translates(self) -> str | None:
        return self.source

    @property
    def stands_on(self) -> Mapping[str, Path | str]:
        used = (("autoencoder", self.matches), ("prior", self.denoises), ("features", self.matches and self.latent_gan == "B"))
        names = [f"{what}_{domain}" for what, wanted in used if wanted for domain in "ab"]
        return {f"--{name.replace('_', '-')}": folder for name in names if (folder := self._given(name)) is not None}

    def settled(self, settings: Settings) -> tuple[Recipe, Settings]:
        """The target is the data of the run; a test set is what an evaluation compares with."""
        for flag in ("vae", "init", "network"):
            if getattr(settings, flag) is not None:
                raise ValueError(
                    f"the recipe ladiffgan translates images with networks of its own (--generator): leave --{flag} away"
                )
        if settings.gradient_checkpointing or settings.compile != "no":
            raise ValueError(
                "generators are neither compiled nor checkpointed here: leave --compile and --gradient-checkpointing away"
            )
        if settings.conditional == "yes":
            raise ValueError("--conditional yes: a translation has no condition, its domains are unpaired: leave it away")
        domains = self._domains()
        if settings.data not in (Settings().data, domains.train_b):
            raise ValueError(f"--data {settings.data}: a translation has two sets, say --source and --target")
        judged = settings.eval_data or (domains.test_b if settings.eval_every else None)
        if settings.size % Pair.multiple:
            raise ValueError(f"--size {settings.size}: the sides of translated images are multiples of {Pair.multiple}")
        with torch.device("meta"):  # sizes and widths that do not fit are refused before anything is trained
            self._pair(settings.size)
            self._critic(settings.size)
        for flag, name in (("--source", domains.train_a), ("--target", domains.train_b)):
            try:
                open_source(name, settings.size)
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from error
        given = replace(self, source=domains.train_a, target=domains.train_b, vgg_weight=self._vgg(settings.size))
        return given, replace(settings, data=domains.train_b, eval_data=judged, conditional="no")

    def _vgg(self, size: int) -> float | None:
        """The weight of the loss in VGG16, which is asked for only where it can be computed."""
        if self.generator not in INSIDE:
            return None
        if self.vgg_weight is None:
            return 1.0 if size >= INSIDE[self.generator] and has_trunk("vgg16") else 0.0
        if self.vgg_weight:
            first_weights(TRUNKS["vgg16"].weights)  # refused now, and not when the phases are trained
            if size < SEEN:
                raise ValueError(
                    f"--vgg-weight {self.vgg_weight:g}: VGG16 sees nothing in images of {size} px: from {SEEN} px up, or leave it away"
                )
        return self.vgg_weight

    def notes(self, settings: Settings) -> Iterable[str]:
        if settings.size >= INSIDE.get(self.generator, settings.size + 1) and not self.vgg_weight and not has_trunk("vgg16"):
            yield f"without {self.generator}'s loss in VGG16; its weights are not on this machine: see percepta doctor"

    def _domains(self) -> Domains:
        """A --source that holds both may come with the --target that a run found in it: the command was given again, to go on."""
        if self.source == BUILT_IN and self.target is not None and not is_shapes(self.target):
            raise ValueError(f"--target {self.target}: give the --source too, the images that are to become it")
        with suppress(ValueError):
            if self.target is not None and (both := find_domains(self.source)).train_b == self.target:
                return both
        return find_domains(self.source, self.target)

    def prepared(self, settings: Settings, trained: Trained) -> Recipe:
        """Autoencoders, then what diffuses in their latents; what is given is looked at first."""
        for domain in "ab":
            if (coder := self._given(f"autoencoder_{domain}")) is not None:
                vae_folder(str(coder), f"--autoencoder-{domain}")
            if (prior := self._given(f"prior_{domain}")) is not None:
                prior_folder(prior, f"--prior-{domain} ")
            if (plain := self._given(f"features_{domain}")) is not None and not plain.exists():
                raise ValueError(f"--features-{domain} {absent(plain, 'a run of percepta train ddpm --vae')}")
        told = self.prior_a is not None and self.prior_b is not None  # a prior brings its autoencoders along
        if not self.matches and (told or not self.denoises):
            return self
        of = {"a": replace(settings, data=self.source), "b": settings}
        found: dict[str, Path] = {}
        sees = self.perceptual if settings.size >= SEEN else "none"
        for domain, its in of.items():
            coder = replace(TrainAutoencoder.default_settings(), **self._of(its), steps=self.autoencoder_steps)
            found[f"autoencoder_{domain}"] = self._given(f"autoencoder_{domain}") or trained(
                f"autoencoder of {domain.upper()}", TrainAutoencoder(perceptual=sees), coder
            )
        for domain, other in (("a", "b"), ("b", "a")):
            own, beside = str(found[f"autoencoder_{domain}"]), str(found[f"autoencoder_{other}"])
            flags = {**self._of(of[domain]), "steps": self.prior_steps, "batch": 32, "lr": 3e-4, "ema_decay": 0.999}
            if self.denoises:
                prior = replace(TrainPrior.default_settings(), **flags)
                found[f"prior_{domain}"] = self._given(f"prior_{domain}") or trained(
                    f"prior of {domain.upper()}", TrainPrior(own=own, other=beside), prior
                )
            if self.matches and self.latent_gan == "B":
                plain = replace(Ddpm.default_settings(), **flags, vae=own)
                found[f"features_{domain}"] = self._given(f"features_{domain}") or trained(
                    f"features of {domain.upper()}", Ddpm(schedule="linear"), plain
                )
        return replace(self, **found)

    def _given(self, name: str) -> Path | None:
        return getattr(self, name)

    def _of(self, settings: Settings) -> dict[str, Any]:
        """What a phase has of the run's settings; of a random crop, what stands for it where latents are encoded once."""
        own = {name: getattr(settings, name) for name in (*PHASE, "data", "size")}
        own["crop"] = still(settings.crop)  # the whole of what the GAN sees parts of
        return own | {"conditional": "no", "sample_every": 0, "checkpoint_every": 500, "log_every": 100}

    def build(self, context: Context) -> Method:
        pair = self._pair(context.size)
        terms = list(self._terms(context)) if context.trains else []
        nothing = torch.zeros(0, 3, context.size, context.size)
        a, b = (make() if make is not None and context.trains else nothing for make in (context.source_examples, context.examples))
        test = find_domains(self.source, self.target).test_a if context.trains else None
        return Method(pair, Translate(pair), terms, Translated(pair, a, b, test or self.source))

    def _width(self, size: int) -> int:
        return max(8, min(64, size // 2)) if self.channels is None else self.channels

    def _pair(self, size: int) -> Pair:
        channels, blocks = self._width(size), {} if self.blocks is None else {"blocks": self.blocks}
        if self.generator == "ugatit":
            return UgatitPair(size, channels, light=self.light, **blocks)
        if self.generator == "cyclegan":
            return CycleganPair(size, channels, **blocks)
        return (UnitPair if self.generator == "unit" else MunitPair)(channels, **blocks)

    def _critic(self, size: int) -> nn.Module:
        kind = {"ugatit": UgatitCritic, "cyclegan": PatchCritic}.get(self.generator, MultiscaleCritic)
        return kind(size, self._width(size))

    def _terms(self, context: Context) -> Iterator[Term]:
        """Of the image first, then of its latents; the critics take their turns in this order."""
        for domain in "ab":
            kind = DiffusedAdversarial if self.diffusion_gan else Adversarial
            yield Term(f"adversarial/{domain}", kind(self._critic(context.size), real=f"real_{domain}", fake=f"fake_{domain}"))
        asked = {"cycle": self.cycle_weight, "identity": self.identity_weight, "cam": self.cam_weight}
        for name, objective, usual in LOSSES[self.generator]:
            weight = usual if asked.get(name) is None else asked[name]
            if weight:
                yield Term(name, objective, weight)
        if weight := self._vgg(context.size):
            yield Term("vgg", AlikeInside(Trunk("vgg16", taps=(RELU5_3,))), weight)
        coders: list[Autoencoder] = []  # each is read once, and serves every term
        yield from self._latent_gan(context, coders)
        yield from self._denoising(coders)

    def _latent_gan(self, context: Context, coders: list[Autoencoder]) -> Iterator[Term]:
        if not self.matches:
            return
        times = Between.read(self.latent_times)
        for domain in "ab":
            coder = load_autoencoder(vae_folder(str(self._folder(f"autoencoder_{domain}")))).requires_grad_(False).eval()
            coders.append(coder)
            names = {"real": f"real_{domain}", "fake": f"fake_{domain}"}
            if self.latent_gan == "A":
                critic = LatentCritic(
                    coder.latent_channels, self._width(context.size), depth_for(context.size // coder.factor), context.seed
                )
                objective = LatentDiffusionGan(coder, critic, LinearBeta(STEPS), times, **names)
            else:
                objective = LatentMatching(coder, denoiser_of(self._folder(f"features_{domain}")), times, **names)
            share = None if self.latent_gan_share is None else self.latent_gan_share / 2
            yield Term(f"latent-gan/{domain}", objective, self.latent_gan_weight, share=share)

    def _denoising(self, coders: list[Autoencoder]) -> Iterator[Term]:
        if not self.denoises or self.denoising == "none":
            return
        ways: tuple[tuple[str, Direction], ...] = (("b", "a2b"), ("a", "b2a"))
        for domain, direction in ways:
            prior = load_prior(self._folder(f"prior_{domain}"), coders)
            coders += [prior.own, prior.other]
            objective = ConditionalDenoising(prior, direction, self.denoising, Between.read(self.denoising_times))
            share = None if self.denoising_share is None else self.denoising_share / 2
            yield Term(f"denoising/{domain}", objective, self.denoising_weight, share=share)

    def _folder(self, name: str) -> Path:
        """What an earlier phase left."""
        folder = self._given(name)
        if folder is None:
            raise ValueError(f"--{name.replace('_', '-')} is needed here: it is trained by percepta train ladiffgan, or given")
        return folder
