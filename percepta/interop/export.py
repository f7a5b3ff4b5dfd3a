"""A trained denoiser as a diffusers pipeline: a folder that loads in an environment that never heard of Percepta.

Where diffusers has a pipeline that samples this kind of model right, the folder names that one, and a plain `from_pretrained(OUT)` runs no
code from the folder:

    unconditional U-Net, noise/clean/velocity   DDIMPipeline, or DDPMPipeline for DDPM and DPM-Solver++
    unconditional U-Net, flow                   DDPMPipeline with a flow-matching scheduler
    U-Net with classes; EDM's preconditioning   ConsistencyModelPipeline (it takes labels and scales the input as any scheduler says)
    unconditional U-Net in latents              LDMPipeline
    DiT of 1000 classes in latents              DiTPipeline (its null label is the constant 1000)
    networks that read text                     Stable Diffusion's pipelines, with the text encoders that the network came with

Everything else travels with `percepta_pipeline.py` and is loaded with `trust_remote_code=True`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel

from percepta._version import __version__
from percepta.formulation import Denoiser, Formulation
from percepta.interop.schedules import SamplerDefaults, kind_of, scheduler_for
from percepta.interop.text import PIPELINES, TextSide
from percepta.interop.travelling import travelling_source
from percepta.networks import Network

CODE = "percepta_pipeline.py"
RECORD = "percepta.json"
OWN_PIPELINE = "PerceptaPipeline"


@dataclass(frozen=True)
class Plan:
    """What an export will look like: the pipeline's class and the names of its components."""

    pipeline: str
    network: str  # unet | transformer
    vae: str | None
    learned_variance: bool = False  # the scheduler uses the network's own variance
    guided: bool = False  # a stock pipeline, with ours beside it for what it lacks
    notes: tuple[str, ...] = field(default=())
    load: str = ""  # what from_pretrained has to be told beside the folder


def plan_export(denoiser: Denoiser, vae: torch.nn.Module | None, defaults: SamplerDefaults, text: TextSide | None = None) -> Plan:
    """Which pipeline samples this denoiser right."""
    network = denoiser.network
    if not isinstance(network, Network):
        raise ValueError(f"only networks of percepta.networks.adapt can be exported, got {type(network).__name__}")
    if network.reads.needed and text is not None:
        return _plan_text(denoiser, vae, defaults, text)
    if network.reads.needed:
        raise ValueError(
            f"a network told {', '.join(network.reads.needed)} needs its text encoder beside it: say with `text` (find_text(FOLDER)) which "
            "pipeline it came from, or save the model alone with network.save_pretrained(FOLDER)"
        )
    model: Any = network.model
    if model.config.sample_size is None:
        raise ValueError(
            "the network's config names no sample_size, so a pipeline would not know what to make; build it with sample_size"
        )
    kind, own_code = kind_of(denoiser.formulation), not hasattr(diffusers, type(model).__name__)
    part = "unet" if "transformer" not in type(model).__name__.lower() else "transformer"
    own = Plan(OWN_PIPELINE, part, None if vae is None else "vae")
    facts = set(dict(model.config).get("_percepta") or {}) - {"num_classes"}
    if own_code or facts or not isinstance(model.config.sample_size, int) or defaults.listed(denoiser.formulation) is not None:
        return own
    if isinstance(model, UNet2DModel):
        stock = _plan_unet(network, kind, defaults, vae) or own
        return stock if _does_all(stock, kind, defaults) else own
    if (
        isinstance(model, DiTTransformer2DModel)
        and kind == "discrete"
        and vae is not None
        and network.num_classes == 1000
        and _plain(vae)
        and not defaults.exact  # its usual guidance is 4, and it knows no eta
    ):
        return Plan("DiTPipeline", part, "vae")
    return own


def _plan_text(denoiser: Denoiser, vae: Any, defaults: SamplerDefaults, text: TextSide) -> Plan:
    """Stable Diffusion's own pipelines: what they cannot be told is refused."""
    if vae is None or (text.kind != "sd3" and not _plain(vae)):
        raise ValueError(
            f"a {text.pipeline} decodes latents that are scaled by one number: give its autoencoder, got {vae and vae.config}"
        )
    kind, listed = kind_of(denoiser.formulation), defaults.listed(denoiser.formulation) is not None
    if kind != ("flow" if text.kind == "sd3" else "discrete") or listed or (text.kind == "sd" and defaults.spacing == "leading"):
        raise ValueError(
            f"a {text.pipeline} cannot sample a {kind} path by {defaults.solver} with the spacing {defaults.spacing!r} as Percepta does"
            + (": export with trailing" if kind == "discrete" else "")
        )
    if text.kind == "sd3":
        note = "diffusers spreads the steps of a flow a little differently; sigmas=[1 - i / steps for i in range(steps)] gives Percepta's"
        load = "" if "text_encoder_3" in text.parts else ", text_encoder_3=None, tokenizer_3=None"
        return Plan(text.pipeline, "transformer", "vae", notes=(note,), load=load)
    return Plan(text.pipeline, "unet", "vae")


def _does_all(plan: Plan, kind: str, defaults: SamplerDefaults) -> bool:
    """Whether a pipeline of diffusers can be told guidance and eta; and where the chain is exact, whether it draws it without being told."""
    noise = defaults.eta == 0 or (plan.pipeline in ("DDIMPipeline", "LDMPipeline") and not defaults.exact)
    other = kind == "flow" or plan.learned_variance  # a grid that ends earlier; a variance that the chain had not
    return defaults.guidance == 1 and noise and not (defaults.exact and other)


def _plain(vae: Any) -> bool:
    """Latents are scaled by one number and not shifted: all that diffusers' older pipelines know."""
    return bool(vae.config.get("scaling_factor")) and not any(
        vae.config.get(k) for k in ("shift_factor", "latents_mean", "latents_std")
    )


def _plan_unet(network: Network, kind: str, defaults: SamplerDefaults, vae: Any) -> Plan | None:
    learned, classes = network.out_channels != network.in_channels, network.num_classes
    if vae is not None:
        stock = classes is None and not learned and kind == "discrete" and defaults.clip is None and _plain(vae)
        return Plan("LDMPipeline", "unet", "vqvae") if stock else None
    if learned:
        return Plan("DDPMPipeline", "unet", None, learned_variance=True) if classes is None and defaults.solver == "ddpm" else None
    if kind == "flow":
        note = "diffusers' own flow grid ends at t = 0.001, so its last step is nearly empty; percepta_pipeline uses the even grid"
        return (
            Plan("DDPMPipeline", "unet", None, guided=True, notes=(note,))
            if classes is None and defaults.solver == "euler"
            else None
        )
    if kind == "edm" or classes is not None:
        note = "say how many steps: this pipeline's default is one" + (
            "; labels left out are drawn at random" if classes is not None else ""
        )
        return Plan("ConsistencyModelPipeline", "unet", None, guided=network.reads.null_label, notes=(note,))
    return Plan("DDIMPipeline" if defaults.solver == "ddim" else "DDPMPipeline", "unet", None)


def export_pipeline(out: str | Path, denoiser: Denoiser, *, vae: torch.nn.Module | None = None, sampler: SamplerDefaults | None = None,
                    class_names: Sequence[str] | None = None, card: Mapping[str, Any] | None = None, text: TextSide | None = None) -> Path:  # fmt: skip
    """Write the pipeline to `out`, in one piece: a folder beside it is filled first and then renamed. Returns `out`.

    `sampler` says how it samples by default. `card` fills the README: title, description, training, protocol (a mapping), license,
    license_name, license_link. `text` is the text side (`find_text`) of a network that reads prompts; it is copied as it is.
    """
    out, network = Path(out), denoiser.network
    defaults = (SamplerDefaults() if sampler is None else sampler).resolved(denoiser.formulation)
    vae = getattr(vae, "model", vae)
    plan = plan_export(denoiser, vae, defaults, text)
    assert isinstance(network, Network)
    if class_names is not None and len(class_names) != network.num_classes:
        raise ValueError(f"{len(class_names)} class names for a network of {network.num_classes} classes")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / RECORD).is_file())):
        raise ValueError(f"{out} exists and is no earlier export; give a new folder, or remove it")
    unknown = set(card or {}) - {"title", "description", "training", "protocol", "license", "license_name", "license_link"}
    if unknown:
        raise ValueError(
            f"the card has no field {', '.join(sorted(unknown))}; it knows title, description, training, protocol, license, "
            "license_name, license_link"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        copied = {} if text is None else text.copy_to(work)
        names = None if class_names is None else tuple(class_names)
        _write(work, denoiser, plan, vae, defaults, names, card or {}, out.name, copied)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def replace_folder(work: Path, out: Path) -> None:
    """Move `work` to `out`; an earlier export is moved aside first and removed last."""
    work.chmod(0o755)
    old = out.with_name(f"{work.name}.old")
    if out.exists():
        os.replace(out, old)
    os.replace(work, out)
    if old.exists():
        shutil.rmtree(old)


def _write(work: Path, denoiser: Denoiser, plan: Plan, vae: Any, defaults: SamplerDefaults, names: tuple[str, ...] | None,
           card: Mapping[str, Any], folder: str, copied: Mapping[str, Any]) -> None:  # fmt: skip
    network: Any = denoiser.network
    cls = type(network.model)
    scheduler: Any = scheduler_for(denoiser.formulation, defaults, plan.learned_variance)
    own_code = not hasattr(diffusers, cls.__name__)
    module = cls.__module__.rpartition(".")[2]
    ours = plan.pipeline == OWN_PIPELINE
    if plan.pipeline == PIPELINES["sd"]:
        # this pipeline would set it, with a warning; the trailing grid has no offset
        scheduler.register_to_config(steps_offset=1)
    index: dict[str, Any] = {
        **copied,
        "_class_name": [CODE.removesuffix(".py"), OWN_PIPELINE] if ours else plan.pipeline,
        "_diffusers_version": diffusers.__version__,
        plan.network: [module if own_code else "diffusers", cls.__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    if plan.vae is not None:
        index[plan.vae] = ["diffusers", type(vae).__name__]
        vae.save_pretrained(work / plan.vae, safe_serialization=True)
    network.model.save_pretrained(work / plan.network, safe_serialization=True)
    scheduler.save_pretrained(work / "scheduler")
    if own_code:
        (work / plan.network / f"{module}.py").write_text(travelling_source(cls))
    id2label = None if names is None else {str(i): name for i, name in enumerate(names)}
    if ours:
        index |= {key: [None, None] for key in ("unet", "transformer", "vae") if key not in index}
        index |= {"num_classes": network.num_classes, "null_class": network.reads.null_label, "steps": defaults.steps,
                  "class_token": isinstance(network.model, SD3Transformer2DModel), "id2label": id2label, "guidance": defaults.guidance,
                  "eta": defaults.eta, "timesteps": defaults.listed(denoiser.formulation)}  # fmt: skip
    elif plan.pipeline == "DiTPipeline" and id2label is not None:
        index["id2label"] = id2label
    if ours or plan.guided:
        shutil.copyfile(Path(__file__).with_name(CODE), work / CODE)
    (work / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    record = {
        "percepta": __version__,
        "formulation": denoiser.formulation.to_config(),
        "sampler": asdict(defaults),
        "class_names": names,
        "card": dict(card),
    }
    (work / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    own_file = f"{plan.network}/{module}.py" if own_code else None
    (work / "README.md").write_text(_card(denoiser, plan, defaults, names, card, folder, own_file))


def _calls(network: Network, plan: Plan, defaults: SamplerDefaults) -> tuple[str, str, str]:
    """How to load (further arguments), how to sample, and how to sample with guidance through the code beside a stock pipeline."""
    steps, classes = f"num_inference_steps={defaults.steps}", network.num_classes
    labels = None if classes is None else f"class_labels={[k % classes for k in range(4)]}"
    ours = ", ".join(
        [*([labels] if labels else ["batch_size=4"]), *(["guidance_scale=2.0"] if network.reads.null_label else []), steps]
    )
    if plan.pipeline == OWN_PIPELINE:
        return ", trust_remote_code=True", ours, ""
    if network.reads.needed:
        return plan.load, f'"a prompt", {steps}, guidance_scale={defaults.guidance if defaults.exact else 4.0:g}', ""
    if plan.pipeline == "DiTPipeline":
        return "", f"{labels}, {steps}, guidance_scale={max(defaults.guidance, 1.0)}", ""
    eta = f", eta={defaults.eta}" if plan.pipeline in ("DDIMPipeline", "LDMPipeline") and defaults.eta else ""
    stock = ", ".join([*(["batch_size=4"]), *([labels] if labels else []), steps]) + eta
    return "", stock, ours if plan.guided else ""


def _card(denoiser: Denoiser, plan: Plan, defaults: SamplerDefaults, names: tuple[str, ...] | None, card: Mapping[str, Any], folder: str,
          own_file: str | None) -> str:  # fmt: skip
    """The README, from card.md.jinja."""
    import jinja2

    network: Any = denoiser.network
    load, call, guided = _calls(network, plan, defaults)
    count = sum(p.numel() for p in network.model.parameters())
    template = jinja2.Template(
        Path(__file__).with_name("card.md.jinja").read_text(), trim_blocks=False, undefined=jinja2.StrictUndefined
    )
    fields = dict.fromkeys(("title", "description", "training", "protocol", "license", "license_name", "license_link")) | dict(card)
    return template.render(
        task="text-to-image" if network.reads.needed else "unconditional-image-generation",
        card=fields, folder=folder, load=load, call=call, trust=plan.pipeline == OWN_PIPELINE, code=CODE, own=own_file, guided=guided,
        guided_why="" if network.reads.null_label else " and the even grid", notes=plan.notes, class_names=names,
        facts=_facts(denoiser.formulation, type(network.model).__name__, count, network, plan, defaults),
    ).strip() + "\n"  # fmt: skip


def _facts(
    formulation: Formulation, cls: str, count: int, network: Network, plan: Plan, defaults: SamplerDefaults
) -> dict[str, str]:
    path = formulation.path.to_config()
    shown = ", ".join(f"{k} {v}" for k, v in path.items() if k not in ("name", "table"))
    return {
        "network": f"{cls}, {count / 1e6:.2f}M parameters",
        "makes": f"{network.sample_size} x {network.sample_size}, {network.in_channels} channels"
        + (", latents of the vae" if plan.vae else ""),
        "classes": "none"
        if network.num_classes is None
        else f"{network.num_classes}" + (" and a null label" if network.reads.null_label else ""),
        "output": formulation.output,
        "path": f"{path['name']} ({shown})",
        "sampler": f"{defaults.solver}, {defaults.steps} steps, {defaults.spacing} spacing"
        + ("" if defaults.clip is None else f", x0 clipped to {defaults.clip}"),
        "made with": f"percepta {__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}",
    }
