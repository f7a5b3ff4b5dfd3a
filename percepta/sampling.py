"""From a run or a pipeline to images in files, with the protocol that made them: what `percepta sample` and evaluation share."""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from percepta import distributed
from percepta._version import __version__
from percepta.evaluation.contamination import CARD, trained_against
from percepta.formulation import EDM, FLOW, Cond, Formulation
from percepta.images import grid, save_png, to_uint8
from percepta.interop import Pipeline, find_text, load_pipeline
from percepta.networks import Autoencoder, Network, cost_of
from percepta.path import Cosine, LinearBeta
from percepta.rng import rng_for
from percepta.samplers import Drawn, sample_images, usual_clip
from percepta.samplers.images import check_sampler
from percepta.samplers.interpolation import images_of_noise, slerp

if TYPE_CHECKING:
    from percepta.training.texts import Prompts

PROTOCOL = "protocol.json"
Check = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to draw, and how."""

    source: Path
    num: int
    steps: int | None = None
    sampler: str | None = None
    spacing: str | None = None
    eta: float | None = None
    clip: bool | None = None
    guidance: float | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    cache: Path | None = None  # of the prompts' embeddings
    seed: int = 0
    batch: int = 64
    device: str = "auto"
    mixed_precision: str = "no"
    predict: str | None = None
    schedule: str | None = None

    def stated(self) -> Formulation | None:
        """What the flags say of a bare model folder."""
        if self.predict is None:
            return None
        if self.predict in ("flow", "edm"):
            return FLOW if self.predict == "flow" else EDM
        path = {"linear": LinearBeta, "cosine": Cosine}.get(self.schedule or "")
        if path is None:
            raise ValueError(f"--predict {self.predict} needs --schedule linear or cosine")
        return Formulation(path(), {"eps": "noise", "x0": "clean", "v": "velocity"}[self.predict])


class Drawing:
    """A loaded pipeline and a job: any part of the job's images, as often as wanted."""

    def __init__(self, job: Job, check: Check = lambda *_: None) -> None:
        from percepta.training.precision import check_precision, pick_device

        self.job, self.check = job, check
        self.device = pick_device(job.device, distributed.world().local_rank)
        check_precision(job.mixed_precision, self.device)
        self.pipeline: Pipeline = load_pipeline(job.source, job.stated())
        self.denoiser = self.pipeline.denoiser.to(self.device).eval()
        network = self.denoiser.network
        assert isinstance(network, Network)
        if network.sample_size is None:
            raise ValueError(
                f"{job.source} does not say which image size it was trained for (sample_size in its network's config.json)"
            )
        self.shape = (network.in_channels, network.sample_size, network.sample_size)
        self.prompts = self._prompts(network)
        self.vae = None if self.pipeline.vae is None else Autoencoder(self.pipeline.vae).to(self.device).eval()  # pyright: ignore[reportArgumentType]
        self.labels = class_labels(job, self.pipeline.class_names, network.num_classes)
        self.how = self._how()
        if self.how.guidance != 1 and self.labels is None and self.prompts is None:
            raise ValueError(f"--guidance {self.how.guidance:g} needs a class-conditional model; {job.source} has no classes")
        if self.how.guidance == 1 and job.negative_prompt is not None:
            raise ValueError(
                "--negative-prompt says what guidance leads away from, and there is none: give --guidance 7.5, or another above 1"
            )
        if self.how.guidance != 1:
            network.null_condition(1)  # refused now, where it has none, and not after what is drawn before

    def _prompts(self, network: Network) -> "Prompts | None":
        """The job's prompts, embedded, for a network that reads text."""
        from percepta.training.texts import embed

        job = self.job
        if not network.reads.needed:
            if job.prompts or job.negative_prompt is not None:
                flag = "--prompts" if job.prompts else "--negative-prompt"
                raise ValueError(f"{flag} was given, but {job.source} reads no text")
            return None
        if not job.prompts:
            raise ValueError(
                f'{job.source} makes images of texts: say of which with --prompts "a red disc;a blue star", or --prompts FILE'
            )
        text = find_text(self.pipeline.origin["path"])
        if text is None:
            raise ValueError(f"{job.source} reads text and has no text encoder: give the whole pipeline's folder")
        factor = 1 if self.pipeline.vae is None else Autoencoder(self.pipeline.vae).factor  # pyright: ignore[reportArgumentType]
        assert network.sample_size is not None
        against = () if job.negative_prompt is None else (job.negative_prompt,)
        size, every = network.sample_size * factor, (*job.prompts, *against)
        found = embed(text, every, size, job.cache, self.device, lambda text: None, self.check)
        network.set_null(found.cond(against) if against else found.null())
        return replace(found, order=found.order[: len(job.prompts)])

    def cond(self, places: Sequence[int]) -> Cond:
        """What the images of these numbers are told."""
        if self.prompts is not None:
            return {k: v.to(self.device) for k, v in self.prompts.cond(self.prompts.of_images(places)).items()}
        return None if self.labels is None else self.labels[list(places)].to(self.device)

    def _how(self) -> Drawn:
        """As the job says, and where it says nothing, as the pipeline was made to be sampled."""
        job, made = self.job, self.pipeline.sampler
        sampler = job.sampler or made.resolved(self.denoiser.formulation).solver
        assert sampler is not None
        own = sampler == made.solver  # a bare model has none; another sampler has its own usual habits
        steps = job.steps or made.steps
        clip = usual_clip(sampler, pixels=self.vae is None)
        if own and sampler in ("ddim", "ddpm"):
            clip = None if made.clip is None else (-made.clip, made.clip)
        if job.clip is not None:
            clip = (-1.0, 1.0) if job.clip else None
        spacing = job.spacing or (made.spacing if own else None)
        eta = job.eta if job.eta is not None else made.eta if own else 0.0
        guidance = job.guidance if job.guidance is not None else made.guidance if own else 1.0
        how = Drawn(sampler, steps, spacing, eta, clip, guidance)
        check_sampler(self.denoiser, how)
        return how

    def protocol(self) -> dict[str, Any]:
        """All that decides the images, and what the network costs. Batch size and device decide nothing."""
        job, cost = self.job, cost_of(self.denoiser, self.shape, None if self.prompts is None else self.cond([0]))
        return {
            "source": str(job.source), "weights": weights_hash(self.denoiser), "parameters": cost.parameters,
            "gflops": round(cost.gflops, 6), **asdict(self.how), "classes": list(job.classes),
            "seed": job.seed, "num": job.num, "mixed_precision": job.mixed_precision, "percepta": __version__,
            **({} if self.prompts is None else {"prompts": list(job.prompts), "text_encoders": self.prompts.text.key}),
            **({} if job.negative_prompt is None else {"negative_prompt": job.negative_prompt}),
        }  # fmt: skip

    def images(self, first: int, count: int) -> Tensor:
        """Images first .. first + count - 1 of the job, float [-1, 1] on the CPU."""
        from percepta.training.precision import autocast

        rng = rng_for(self.job.seed, first, count, stream="sample", device=self.device)
        cond = self.cond(range(first, first + count))
        with autocast(self.job.mixed_precision, self.device):
            return sample_images(self.denoiser, self.how, self.shape, rng, cond, self.vae, self.check, batch_size=count)

    def walk(self, first: int, second: int, points: int = 11) -> Tensor:
        """From image `first` of the job to image `second`, both included, by slerp of their noises; all of the class of the first."""
        from percepta.training.precision import autocast

        ends = [
            rng_for(self.job.seed, k, 1, stream="sample", device=self.device).normal("x_T", self.shape)[0] for k in (first, second)
        ]
        noise = slerp(ends[0], ends[1], torch.linspace(0, 1, points, device=self.device))
        cond = self.cond([first] * points)
        with autocast(self.job.mixed_precision, self.device):
            return images_of_noise(self.denoiser, self.how, noise, cond, self.vae, self.check)

    def batches(self, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(number of the first image, images), a batch at a time: the same batches at any number of ranks, which take turns."""
        world = distributed.world()
        for start in range(first, self.job.num, self.job.batch)[world.rank :: world.size]:
            self.check()
            yield start, self.images(start, min(self.job.batch, self.job.num - start))


def reads_text(source: Path) -> bool:
    """Whether this run or pipeline makes images of prompts."""
    return find_text(source) is not None


def prompts_of(text: str | None) -> tuple[str, ...]:
    """Prompts as typed after --prompts: with ; between, or a file with one a line."""
    if text is None:
        return ()
    file = Path(text)
    try:
        found = file.read_text(encoding="utf-8").splitlines() if len(text) < 4096 and file.is_file() else text.split(";")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {file} cannot be read as text: {error}") from error
    prompts = tuple(part.strip() for part in found if part.strip())
    if not prompts:
        raise ValueError(f"--prompts {text!r:.80} holds no prompt: write them with ; between, or name a file with one a line")
    return prompts


def class_labels(job: Job, names: tuple[str, ...] | None, count: int | None) -> Tensor | None:
    """The label of each image: the wanted classes in turn, all where none is named."""
    wanted = class_numbers(job.classes, names, count)
    if not count:
        return None
    table = torch.tensor(wanted or range(count))
    return table[torch.arange(job.num) % len(table)]


def class_numbers(wanted: Sequence[str], names: Sequence[str] | None, count: int | None) -> tuple[int, ...]:
    """Classes by name or number."""
    if not wanted:
        return ()
    if not count:
        raise ValueError("--classes was given, but this model has no classes")
    numbers = []
    plain = [name.replace("-", " ") for name in names or ()]
    for text in wanted:
        spoken = text.replace("-", " ")
        if names and spoken in plain:
            numbers.append(plain.index(spoken))
        elif text.isdigit() and int(text) < count:
            numbers.append(int(text))
        else:
            near = difflib.get_close_matches(spoken, plain, n=1)
            close = f", did you mean {near[0]!r}?" if near else ""
            known = f"0 to {count - 1}" + (f" or a name such as {names[0]}" if names else "")
            raise ValueError(f"there is no class {text!r}{close}; classes are {known}")
    return tuple(numbers)


def weights_hash(module: torch.nn.Module) -> str:
    """sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def draw(job: Job, out: Path, check: Check = lambda *_: None, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Draw the job's images to `out` (a folder, .npz or .png) and return the protocol."""
    return write(Drawing(job, check), out, progress)


def write(drawing: Drawing, out: Path, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """As `draw`, for a pipeline that is loaded already. Ranks fill a folder together, and all leave when it is full."""
    protocol = drawing.protocol()
    record = {**protocol, **origin(drawing.job.source)}
    if out.suffix in (".npz", ".png"):
        parts = []
        for start, images in drawing.batches():
            parts.append(images)
            progress(start + len(images))
        _write_one(out, torch.cat(parts), drawing.labels)
        out.with_name(f"{out.name}.json").write_text(json.dumps(record, indent=2) + "\n")
        return record
    if out.suffix and not out.is_dir():
        raise ValueError(f"--out {out}: a folder, FILE.npz or FILE.png is written, not {out.suffix}")
    first = int(distributed.agreed(torch.tensor(_prepare(out, protocol, record) if distributed.world().first else 0)))
    for start, images in drawing.batches(first):
        for k, pixels in enumerate(to_uint8(images)):
            save_png(out / f"{start + k:06d}.png", pixels)
        progress(start + len(images))
    distributed.agreed(torch.zeros(1))  # all have written
    return record


def origin(source: Path) -> dict[str, Any]:
    """What a reader of the images has to know of the model, though it decides no pixel: it must not be lost with the run's folder."""
    config = source / "config.json"
    settings = (
        json.loads(config.read_text()).get("settings", {})
        if config.is_file() and any((source / part).is_dir() for part in ("model", "adapter"))
        else {}
    )
    weights = {} if "ema" not in settings else {"ema": settings["ema"]}
    return {CARD: list(trained_against(source)), **weights}


def _prepare(out: Path, protocol: dict[str, Any], record: dict[str, Any]) -> int:
    """How many images of this very protocol are there already; a folder with anything else is refused."""
    file = out / PROTOCOL
    if file.is_file():
        known = json.loads(file.read_text())
        different = [k for k, v in json.loads(json.dumps(protocol)).items() if k != "num" and known.get(k) != v]
        different += [k for k in known if k not in record]  # a flag that was given then and is not now
        if different:
            raise ValueError(f"{out} holds images of another protocol ({', '.join(different)} differ): give another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {PROTOCOL}: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    there = 0
    while (out / f"{there:06d}.png").is_file():
        there += 1
    return there


def _write_one(out: Path, images: Tensor, labels: Tensor | None) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        save_png(out, grid(images))
        return
    temporary = out.with_name(f".{out.name}.tmp.npz")
    if labels is None:
        np.savez(temporary, arr_0=to_uint8(images))
    else:
        np.savez(temporary, arr_0=to_uint8(images), arr_1=labels.numpy())
    temporary.replace(out)
