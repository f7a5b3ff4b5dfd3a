"""Product: what a trained model is good for: previews while it trains, and the folder that is exported."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from percepta._version import __version__
from percepta.formulation import Cond, Denoiser, Formulation
from percepta.images import to_uint8
from percepta.interop.export import RECORD, replace_folder
from percepta.networks import Network
from percepta.path import AbstractDiscretePath
from percepta.rng import Rng, rng_for
from percepta.samplers import Drawn, check_sampler, sample_images, usual_clip
from percepta.training.settings import Settings
from percepta.training.texts import Prompts

WRITTEN = (
    "config.json",
    "translation.json",
    "denoiser",
    "own",
    "other",
)  # what models of the recipes' own consist of, beside weights
JUDGED = 256  # images drawn together for an evaluation: their float form is given up before the next ones are drawn
Check = Callable[..., None]  # called at safe places of a long job; raises to leave it


@runtime_checkable
class Readable(Protocol):
    """Images by number, as evaluation holds a set: uint8 [h, w, 3]."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Sequence[np.ndarray]: ...


@runtime_checkable
class Product(Protocol):
    judged_by: ClassVar[str]  # samples | reconstructions | translations: what an evaluation compares with the data

    def check(self, settings: Settings) -> None:
        """Refuse, before the first step, what a preview could not do."""
        ...

    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        """Images in [-1, 1] and how they were made; the same at every call but for the weights."""
        ...

    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Any
    ) -> tuple[UInt8[np.ndarray, "n h w 3"] | Callable[..., Tensor], Mapping[str, Any]]:
        """The images of an evaluation, or what translates images, and how they are made; `real` is the other side, Readable where
        reconstructions are judged."""
        ...

    def export(self, out: Path, card: Mapping[str, Any]) -> None: ...

    def next_command(self, run: Path) -> str:
        """What a user would type next."""
        ...


@dataclass
class Sampled:
    """A denoiser: previews are samples at fixed seeds, the export is a diffusers pipeline."""

    denoiser: Denoiser
    shape: tuple[int, int, int]
    sampler: str
    vae: Any = None
    class_names: tuple[str, ...] | None = None
    fixed: Drawn | None = None  # the chain a model was trained for; previews heed --sampler
    prompts: Prompts | None = None  # the captions of the data, where the network reads text
    judged_by: ClassVar[str] = "samples"

    def check(self, settings: Settings) -> None:
        if not (settings.sample_every or settings.eval_every):
            return
        told = self.prompts is not None or getattr(self.denoiser.network, "num_classes", None)
        if settings.guidance != 1 and not told:
            raise ValueError(f"--guidance {settings.guidance:g} needs a class-conditional model; this one has no classes")
        for steps in ([settings.sample_steps] if settings.sample_every else []) + (
            [eval_steps(settings)] if settings.eval_every else []
        ):
            check_sampler(self.denoiser, self._how(settings, steps))

    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        how, rng = self._how(settings, settings.sample_steps), rng_for(settings.seed, 0, settings.sample_num, 0, "sample", device)
        with lent(self.vae, device):
            images = self._drawn(how, rng, check)
        told = {} if self.prompts is None else {"prompts": self.prompts.of_images(range(settings.sample_num))}
        return images, {**asdict(how), "seed": settings.seed, "num": settings.sample_num, "weights": weights_of(settings), **told}

    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Any
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Mapping[str, Any]]:
        """--eval-num samples, the classes in turn, from a random stream that nothing else draws from; kept as bytes as they come."""
        how, num = self._how(settings, eval_steps(settings)), settings.eval_num
        parts = []
        with lent(self.vae, device):
            for first in range(0, num, JUDGED):
                rng = rng_for(settings.seed, first, min(JUDGED, num - first), stream="eval", device=device)
                parts.append(to_uint8(self._drawn(how, rng, check)))
        return np.concatenate(parts), {
            "by": "samples", **asdict(how), "seed": settings.seed, "stream": "eval", "num": num, "weights": weights_of(settings),
        }  # fmt: skip

    def _how(self, settings: Settings, steps: int) -> Drawn:
        if self.fixed is not None and settings.sampler is None:
            return self.fixed if settings.guidance == 1 else replace(self.fixed, guidance=settings.guidance)
        name = settings.sampler or self.sampler
        usual = None if self.prompts is None else self.prompts.text.sampler
        spacing = usual.spacing if usual is not None and usual.solver == name else None  # as the exported pipeline draws
        return Drawn(name, steps, spacing, clip=usual_clip(name, self.vae is None), guidance=settings.guidance)

    def _drawn(self, how: Drawn, rng: Rng, check: Check) -> Tensor:
        """The images of these places: the classes in turn, or the captions as the images of the data have them."""
        network = self.denoiser.network
        assert isinstance(network, Network)
        cond: Cond = torch.tensor(rng.ordinals, device=rng.device) % network.num_classes if network.num_classes else None
        if self.prompts is not None:
            cond = {k: v.to(rng.device) for k, v in self.prompts.cond(self.prompts.of_images(rng.ordinals)).items()}
        return sample_images(self.denoiser, how, self.shape, rng, cond, self.vae, check)

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        from percepta.interop import SamplerDefaults, export_pipeline

        clip = usual_clip("ddim", self.vae is None) if isinstance(self.denoiser.path, AbstractDiscretePath) else None
        text = None if self.prompts is None else self.prompts.text
        defaults = SamplerDefaults(clip=clip and clip[1]) if text is None else text.sampler
        if self.fixed is not None:
            how = self.fixed
            defaults = SamplerDefaults(
                how.sampler, how.steps, how.spacing, how.eta, how.clip and how.clip[1], how.guidance, exact=True
            )
        export_pipeline(
            out, self.denoiser, vae=self.vae, sampler=defaults, class_names=self.class_names, card=dict(card), text=text
        )

    def next_command(self, run: Path) -> str:
        said = "" if self.prompts is None else f' --prompts "{self.prompts.of_images([0])[0] or "a prompt"}"'
        return f"percepta sample {run} --num 16{said} --out images.png"


def exportable(formulation: Formulation, solver: str | None, how: Drawn) -> Drawn:
    """`how`, by the path's usual solver and spacing where none is said; ValueError where no scheduler of diffusers draws so."""
    from percepta.interop import SamplerDefaults

    made = SamplerDefaults(solver, how.steps, how.spacing, how.eta, how.clip and how.clip[1], how.guidance).resolved(formulation)
    assert made.solver is not None
    return replace(how, sampler=made.solver, spacing=made.spacing)


def eval_steps(settings: Settings) -> int:
    return settings.eval_steps or settings.sample_steps


def weights_of(settings: Settings) -> str:
    return "ema" if settings.ema != "none" else "raw"


@contextmanager
def lent(module: nn.Module | None, device: torch.device) -> Iterator[None]:
    """A module on a device for a while: an autoencoder takes room only while it decodes."""
    home = None if module is None else next(module.parameters()).device
    if module is not None:
        module.to(device)
    try:
        yield
    finally:
        if module is not None:
            module.to(home)


@contextmanager
def exporting(out: Path, card: Mapping[str, Any]) -> Iterator[Path]:
    """A folder beside `out` to save a model in. It becomes `out` when all of it is there, with its record: who is killed meanwhile leaves no half a model."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_model(out))):
        raise ValueError(f"{out} exists and is no earlier export; give a new folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
        (work / RECORD).write_text(json.dumps({"percepta": __version__, "card": dict(card)}, indent=2) + "\n")
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_model(folder: Path) -> bool:
    """Whether a folder was exported, also before there were records: then it holds nothing else. A run's config.json is none of a model's."""
    if (folder / RECORD).is_file():
        return True
    config = folder / "config.json"
    own = all(entry.name in WRITTEN or entry.suffix == ".safetensors" for entry in folder.iterdir())
    return own and config.is_file() and '"_class_name"' in config.read_text()
