"""A whole run, from flags to an exported model: data, latents, method, loop, export."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from percepta import distributed
from percepta._version import __version__
from percepta.evaluation.contamination import CARD
from percepta.networks import Network
from percepta.rng import mix
from percepta.rollout import Rollout
from percepta.training.adapting import Started, adapt_method, check_table, export_adapter, export_model, start_from
from percepta.training.balance import calibrated_weights
from percepta.training.calibration import calibrate
from percepta.training.config import asked, check_continuation
from percepta.training.data import Data, open_data, with_own_vae
from percepta.training.domains import open_domains
from percepta.training.folder import RunFolder, write_json
from percepta.training.log import Meter, console, make_trackers
from percepta.training.loop import Loop, averaged, resume
from percepta.training.method import Method
from percepta.training.phases import trainer
from percepta.training.precision import CUDA_GRAPHS, check_precision, compile_network, pick_device, walk_backward_again
from percepta.training.recipe import Context, Recipe
from percepta.training.settings import Settings
from percepta.training.shares import shares_every
from percepta.training.signals import Interrupted, StopFlag, stop_on_signals
from percepta.training.state import make_state
from percepta.training.texts import cache_root
from percepta.training.trained_against import names, record

if TYPE_CHECKING:
    from percepta.training.evaluating import Evaluator


LATENTS = 4096  # of which a network that reads latents is taught


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `finished` is false where a signal stopped it."""

    folder: Path
    step: int
    finished: bool
    model: Path | None = None
    next_command: str = ""
    first: bool = True  # rank 0: the one that tells


def train(recipe: Recipe, settings: Settings, quiet: bool = False) -> Outcome:
    """Run a recipe to its end, or to where a signal stops it; first what it stands on."""
    recipe, settings = recipe.settled(settings)
    uses_cuda = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    with stop_on_signals() as flag, distributed.joined("cuda" if uses_cuda else "cpu", settings.dist_timeout) as world:
        if settings.batch < world.size:
            raise ValueError(f"--batch {settings.batch} is smaller than the number of processes, {world.size}")
        folder = RunFolder(recipe.folder(settings), writes=world.first)
        folder.open(settings.resume)
        told = (lambda text: None) if quiet or not world.first else console.print
        try:
            if settings.resume:
                check_continuation(folder.config, recipe, settings, whole=False)  # now, and not after the phases
            recipe = recipe.prepared(
                settings, trainer(settings, lambda phase, its: train(phase, its, quiet).finished, told, flag.check)
            )
            return _train(recipe, settings, folder, flag, world, quiet or not world.first)
        except Interrupted:  # in a phase, while latents were encoded (what is encoded is kept), or a domain encoder was trained
            return Outcome(folder.root, 0, False, first=world.first)
        except Exception:
            folder.leave_no_trace()
            raise
        finally:
            folder.close()


def _train(recipe: Recipe, settings: Settings, folder: RunFolder, flag: StopFlag, world: distributed.World, quiet: bool) -> Outcome:
    settings = with_own_vae(settings, recipe.latents_of_init)
    device = pick_device(settings.device, world.local_rank)
    check_precision(settings.mixed_precision, device)
    note = (lambda text: None) if quiet else console.print
    if settings.resume:
        check_continuation(folder.config, recipe, settings)
    check_table(settings)
    recipe.check(settings)
    data = (open_data(settings, world, device, note, flag.check) if recipe.translates is None
            else open_domains(settings, recipe.translates, world, device))  # fmt: skip
    domain, latent_vgg = (partial(own, settings, note, flag.check) for own in (own_domain, partial(own_latent_vgg, data)))
    method = build_method(recipe, settings, data, domain, latent_vgg=latent_vgg)
    method.to(device)
    prepare_networks(method, settings, device)
    state = make_state(method, settings, device)
    for player in state.players.values():
        distributed.broadcast_parameters(list(player.module.state_dict().values()))
    if settings.resume and not resume(state, folder.root, folder.writes, settings, note):
        note(f"no checkpoint in {folder.root} yet: starting from the beginning")
    if state.step > settings.steps:
        raise ValueError(f"{folder.root} is at step {state.step}, beyond --steps {settings.steps}: nothing is left to train")
    method.product.check(settings)
    against = record(method, recipe, settings)
    measured = shares_every(settings, method, device)
    try:
        evaluator = _evaluator(method, settings, device, names(against), note, flag)
    except Interrupted:
        return Outcome(folder.root, state.step, False, first=world.first)
    if state.step == 0:
        for name, found in calibrate(method, data.batches, settings, device, state.stream, flag.check).items():
            note(f"the weight of {name}, found on the first batches: {found:.4g}")
    folder.rewind(state.step)
    if world.first:
        write_json(folder.config, describe(recipe, settings, data, method, world))
    if not quiet:
        note(headline(recipe, settings, data, method, device, world))
        for line in recipe.notes(settings):
            note(line)
    meter = Meter(state.step, settings.steps, settings.batch, quiet)
    trackers = make_trackers(settings.report_to, folder.root, settings) if world.first else []
    loop = Loop(method, data.batches, state, settings, folder, device, flag, meter, trackers, evaluator, measured)
    try:
        finished = loop.run()
    finally:
        meter.close()
        for tracker in trackers:
            tracker.close()
    model = None
    if finished and world.first:
        model = folder.root / ("model" if folds(method) else "adapter")
        with averaged(state):
            if folds(method):
                export_model(method, model, card(recipe, settings, state.step, names(against)))
            if method.adapter is not None:
                export_adapter(method, folder.root / "adapter")
                note(f"the adapter alone: {folder.root / 'adapter'}")
    distributed.wait_for_first()
    return Outcome(folder.root, state.step, finished, model, method.product.next_command(folder.root), world.first)


def folds(method: Method) -> bool:
    """Whether there is a plain model of what was trained."""
    return method.adapter is None or method.adapter.peft.folds


def _evaluator(
    method: Method, settings: Settings, device: torch.device, trained: tuple[str, ...], note: Callable[[str], None], flag: StopFlag
) -> "Evaluator | None":
    """Rank 0's, where the settings ask for evaluations."""
    if not settings.eval_every:
        return None
    from percepta.training.evaluating import prepared

    work = partial(prepared, method.product, settings, device, trained, note, flag.check)
    return distributed.by_first(work, "while what an evaluation needs was made ready")


def card(recipe: Recipe, settings: Settings, step: int, trained: tuple[str, ...] = ()) -> dict[str, Any]:
    """What an exported model's card says of its training; `trained` are the spaces it was trained against."""
    adapter = "" if settings.peft == "full" else f"; an adapter ({settings.peft}) on {settings.init}, merged"
    return {
        **({"protocol": {CARD: ", ".join(trained)}} if trained else {}),
        "title": f"{recipe.name} on {settings.data}",
        "description": f"Trained by Percepta's recipe `{recipe.name}` ({recipe.summary}) on `{settings.data}` at {settings.size} pixels.",
        "training": f"percepta train {recipe.name}: {step} steps of {settings.batch} images, seed {settings.seed}{adapter}",
    }


def own_domain(settings: Settings, note: Callable[[str], None], check: Callable[[], None]) -> Path:
    """The encoder of the training images: the one that an evaluation of this run in the space `domain` would find."""
    from percepta.evaluation.evaluate import cache_folder, domain_encoder
    from percepta.training.evaluating import images_of

    cache = settings.cache / "features" if settings.cache else cache_folder()

    def found(note: Callable[[str], None]) -> Path:
        with torch.random.fork_rng(devices=[]), distributed.alone():  # it is trained on the CPU
            return domain_encoder(images_of(settings, settings.data), cache, settings.seed, note, check)

    return distributed.by_first(partial(found, note), "while the domain encoder was trained") or found(lambda text: None)


def own_latent_vgg(data: Data, settings: Settings, note: Callable[[str], None], check: Callable[[], None]) -> Path:
    """The network that reads these latents, trained on the first of them; found again by what they are."""
    from percepta.spaces.latent_lpips_fit import train_latent_lpips

    if data.latents is None:
        raise ValueError("a network that reads latents is trained on latents, and these data are images: say in whose with --vae")
    first = data.latents(LATENTS)

    def found(note: Callable[[str], None]) -> Path:
        labels = first.cond if isinstance(first.cond, torch.Tensor) else None
        with torch.random.fork_rng(devices=[]):
            return train_latent_lpips(
                first.x0, cache_root(settings.cache) / "latent-lpips", labels, settings.seed, note=note, check=check
            )

    return distributed.by_first(partial(found, note), "while a network for latents was trained") or found(lambda text: None)


def build_method(
    recipe: Recipe, settings: Settings, data: Data, domain: Callable[[], Path] | None = None, trains: bool = True,
    latent_vgg: Callable[[], Path] | None = None,
) -> Method:  # fmt: skip
    """The recipe's method for this data; fresh weights follow from the seed alone."""
    init = init_vae = None
    started = Started()
    if settings.init is not None:
        from percepta.interop import UnknownMeaning, load_pipeline

        try:
            pipeline = load_pipeline(settings.init)
        except UnknownMeaning:
            if recipe.stated() is None:
                raise
            pipeline = load_pipeline(settings.init, recipe.stated())
        init, init_vae = pipeline.denoiser, pipeline.vae
        if kind := pipeline.origin.get("adapter"):
            raise ValueError(
                f"--init {settings.init} holds an adapter ({kind}) that ordinary weights cannot hold: start from its base"
            )
        assert isinstance(init.network, Network)
        started = start_from(init.network, settings, data.num_classes)
        if data.prompts is not None and trains:
            init.network.set_null(data.prompts.null())  # pyright: ignore[reportCallIssue]
    seed = mix(settings.seed, "init")
    torch.manual_seed(seed)
    method = recipe.build(
        Context(
            data.channels, data.size, data.num_classes, data.class_names, settings.network, init, data.vae, init_vae, data.examples,
            seed, settings.micro_batch, domain, latent_vgg, trains, data.prompts, data.source_examples,
        )
    )  # fmt: skip
    adapt_method(method, settings, started)
    return method


def prepare_networks(method: Method, settings: Settings, device: torch.device) -> None:
    """Training mode (networks from folders come in eval mode), and checkpointing, layout and compilation as the settings ask."""
    for module in method.players.values():
        module.train()
    if settings.compile in CUDA_GRAPHS and device.type == "cuda":
        if settings.micro_batch:
            raise ValueError(f"--micro-batch adds up gradients, which the CUDA graphs of --compile {settings.compile} overwrite: use "
                             "--compile default, or leave --micro-batch out")  # fmt: skip
        if isinstance(method.estimate, Rollout) or method.beside:
            raise ValueError(f"a rollout runs its network several times in a step, and the CUDA graphs of --compile {settings.compile} "
                             "keep one result only: use --compile default")  # fmt: skip
    if settings.compile != "no" and shares_every(settings, method, device):
        walk_backward_again()
    networks = [m for m in method.model.modules() if isinstance(m, Network)] or [method.model]
    for network in networks:
        if settings.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if settings.compile != "no":
            compile_network(network, device, None if settings.compile == "default" else settings.compile)


def describe(recipe: Recipe, settings: Settings, data: Data, method: Method, world: distributed.World) -> dict[str, Any]:
    """config.json: what was asked for, and what it came to; `percepta train NAME --config` reads the first three."""
    return {
        **asked(recipe, settings),
        "resolved": {
            "percepta": __version__, "torch": torch.__version__, "processes": world.size, "data": data.fingerprint, "images": data.count,
            "num_classes": data.num_classes, "class_names": data.class_names, "shape": [data.channels, data.size, data.size],
            "parameters": parameters(method.model) if method.adapter is None else method.adapter.base.parameters,
            **({} if data.prompts is None else {"captions": len(data.prompts.distinct), "text_encoders": data.prompts.text.key}),
            **({"weights": weights} if (weights := calibrated_weights(method)) else {}),
            CARD: record(method, recipe, settings), **chain_of(method), **({} if method.adapter is None else {"peft": method.adapter.facts()}),
        },
    }  # fmt: skip


def chain_of(method: Method) -> dict[str, Any]:
    """The sampling chain that a model is finetuned for, where it is."""
    fixed = getattr(method.product, "fixed", None)
    return {} if fixed is None else {"chain": asdict(fixed)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def headline(recipe: Recipe, settings: Settings, data: Data, method: Method, device: torch.device, world: distributed.World) -> str:
    classes = f", {data.num_classes} classes" if data.num_classes else ""
    classes += "" if data.prompts is None else f", {len(data.prompts.distinct)} captions"
    processes = f", {world.size} processes" if world.size > 1 else ""
    trained = f"{parameters(method.model) / 1e6:.2f} M parameters" if method.adapter is None else method.adapter.told()
    return (
        f"{recipe.name}: {trained} on {device}{processes}, {data.count} images of "
        f"{data.channels} x {data.size} x {data.size}{classes}, {settings.steps} steps of {settings.batch}"
    )
