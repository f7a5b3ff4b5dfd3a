"""One call for every network: (x, time, cond) -> raw output.

    network = adapt(UNet2DModel.from_pretrained(folder))
    raw = network(x, time, labels)

`x` is a batch of images or latents, `time` what the path's `network_time` says (float32, one per sample), `cond` a vector of
class labels, a mapping of named tensors, or None. The adapter checks what it is given, multiplies the time by the model's
`time_factor`, casts `x` to the model's precision, and returns everything the model puts out: a learned variance stays behind
the first channels.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from percepta.formulation import Cond
from percepta.networks.facts import facts_of, remember
from percepta.networks.families import family_of

LABELS = "class_labels"
KEPT = ("time_ids", "augment_labels")  # describe the image's making, not its content: never dropped


class Network(nn.Module):
    """A model behind the common call. `model` is what is trained, saved and exported; the adapter adds no parameters.

    A condition can be dropped (for guidance) where the class table has a null label, or where `null` holds the embedding of the
    empty condition, one row per key.
    """

    def __init__(self, model: Any, null: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.family = family_of(model)
        facts = facts_of(model)
        self.family.prepare(model, facts)
        self.reads = self.family.reads(model, facts)
        self.model = model
        config: Any = model.config
        self.time_factor = facts.time_factor
        self.in_channels: int = config.in_channels
        self.out_channels: int = config.in_channels if config.out_channels is None else config.out_channels
        size = facts.sample_size or config.sample_size
        self.sample_size: int | None = size if size is None or isinstance(size, int) else max(size)
        self.null_keys: tuple[str, ...] = ()
        self.set_null(null or {})

    def set_null(self, null: Mapping[str, Tensor]) -> None:
        """From now on this is the embedding of the empty condition, one row per key; it is not saved with the weights."""
        for key, value in null.items():
            if value.shape[:1] != (1,):
                raise ValueError(f"the null condition {key!r} is one row, [1, ...], got {tuple(value.shape)}")
            if key not in {**self.reads.needed, **self.reads.optional}:
                raise ValueError(f"a null condition {key!r} was given, but this {self.family.name} reads {self._wanted()}")
            self.register_buffer(f"null_{key}", value.detach().clone(), persistent=False)
        self.null_keys = tuple(null)

    @property
    def num_classes(self) -> int | None:
        """How many classes labels may name; None where the network reads no labels. The null label, if any, is num_classes."""
        return self.reads.num_classes

    @property
    def conditional(self) -> bool:
        return self.num_classes is not None or bool(self.reads.needed)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Float[Tensor, "b o h w"]:
        """x [b, c, h, w] and time [b], both float; shapes are checked here, with advice."""
        self._check_input(x, time)
        self.check_condition(cond, len(x))
        if self.time_factor != 1.0:
            time = time * self.time_factor
        named = {} if cond is None else {LABELS: cond} if isinstance(cond, Tensor) else dict(cond)
        labels = named.pop(LABELS, None)
        return self.family.call(self.model, x.to(self.dtype), time, labels, named)

    def _check_input(self, x: Tensor, time: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"this {self.family.name} reads [b, {self.in_channels}, h, w], got {tuple(x.shape)}; "
                "build or load a network for the data's channels, or encode images to latents first"
            )
        problem = self.family.check_size(self.model, x.shape[2], x.shape[3])
        if problem:
            raise ValueError(f"this {self.family.name} cannot take {x.shape[2]} x {x.shape[3]}: {problem}; resize or crop the data")
        if time.shape != (len(x),) or not time.is_floating_point():
            got = f"{time.dtype} of shape {tuple(time.shape)}"
            raise ValueError(f"one float time per sample is needed: {len(x)} samples, times {got}")

    def _wanted(self) -> str:
        labels = [] if self.num_classes is None else [f"integer labels 0 .. {self.num_classes - 1}"]
        named = [f"{key!r}" + (f" [n, ..., {width}]" if width else "") for key, width in self.reads.needed.items()]
        return " and ".join(labels + named) or "no condition"

    def check_condition(self, cond: Cond, n: int) -> None:
        """ValueError unless `cond` is what this network reads, for n samples.

        The range of labels is checked where that makes no device wait: on the CPU.
        """
        named: dict[str, Tensor] = {} if cond is None else {LABELS: cond} if isinstance(cond, Tensor) else dict(cond)
        needed: dict[str, int | None] = ({LABELS: None} if self.num_classes is not None else {}) | dict(self.reads.needed)
        missing = [key for key in needed if key not in named]
        unknown = [key for key in named if key not in needed and key not in self.reads.optional]
        if missing or unknown:
            got = "nothing" if not named else ", ".join(named)
            advice = "; for samples without a condition give network.null_condition(n)" if missing else ""
            raise ValueError(f"this {self.family.name} reads {self._wanted()}, got {got}{advice}")
        for key, value in named.items():
            width = needed.get(key, self.reads.optional.get(key))
            if len(value) != n or (width is not None and value.shape[-1] != width):
                wanted = f"[{n}, ...]" if width is None else f"[{n}, ..., {width}]"
                raise ValueError(f"the condition {key!r} of {n} samples must be {wanted}, got {tuple(value.shape)}")
        if LABELS in named:
            self._check_labels(named[LABELS])

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"class labels are a vector of int64, got {labels.dtype} of shape {tuple(labels.shape)}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            least, most = int(labels.min()), int(labels.max())
            assert self.num_classes is not None
            last = self.num_classes if self.reads.null_label else self.num_classes - 1
            if least < 0 or most > last:
                null = f" ({last} is the null label)" if self.reads.null_label else ""
                raise ValueError(
                    f"labels must lie in 0 .. {self.num_classes - 1}{null}, got {least} to {most}; "
                    "does the data have more classes than the network?"
                )

    def drop_condition(self, cond: Cond, drop: Bool[Tensor, "b"]) -> Cond:
        """The condition with the null condition in the rows where `drop` holds; other rows are left as they are, to the bit."""
        if cond is None:
            return None
        if isinstance(cond, Tensor):
            return torch.where(drop.to(cond.device, non_blocking=True), self._null_label(), cond)
        dropped = {}
        for key, value in cond.items():
            rows = drop.to(value.device, non_blocking=True).reshape(-1, *[1] * (value.ndim - 1))
            dropped[key] = value if key in KEPT else torch.where(rows, self._null_row(key, value).to(value), value)
        return dropped

    def null_condition(self, n: int, device: torch.device | str = "cpu") -> Cond:
        """The condition that says nothing, for n samples; None for a network that reads none."""
        if not self.conditional:
            return None
        labels = {} if self.num_classes is None else {LABELS: torch.full((n,), self._null_label(), dtype=torch.long, device=device)}
        if not self.reads.needed:
            return labels[LABELS]
        keys = dict.fromkeys((*self.reads.needed, *self.null_keys))
        named = {key: self._null_row(key).to(device) for key in keys}
        return labels | {key: row.expand(n, *row.shape[1:]) for key, row in named.items()}

    def _null_label(self) -> int:
        if self.num_classes is None or not self.reads.null_label:
            raise ValueError(
                f"this {self.family.name} has no null label, which dropping a class (and guidance) needs: its class table "
                f"holds {self.num_classes} classes and no row more. Build it with a row more and adapt(model, num_classes=...), "
                "or train with cond_dropout 0"
            )
        return self.num_classes

    def _null_row(self, key: str, like: Tensor | None = None) -> Tensor:
        if key == LABELS:
            return torch.tensor([self._null_label()])
        if key not in self.null_keys:
            raise ValueError(
                f"no null condition is stored for {key!r}: give it to adapt(model, null=...), "
                "the embedding of the empty prompt for instance"
            )
        row = self.get_buffer(f"null_{key}")
        if like is not None and row.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"the null condition {key!r} has shape {tuple(row.shape[1:])}, the condition {tuple(like.shape[1:])}; "
                "pad both to one length"
            )
        return row

    def resize(self, size: int) -> None:
        """From now on the model is for images of this side; refused where its class cannot take them.

        The tokens of a transformer keep their range of positions (percepta.networks.positions), here and in what is saved.
        """
        step = self.family.step(self.model)
        if size < 1 or size % step:
            raise ValueError(
                f"this {self.family.name} cannot be trained at {size} x {size}: height and width must be multiples of {step}"
            )
        if size != self.sample_size:
            self.family.resize(self.model, size)
            self.sample_size = size

    def scale_time(self, factor: float) -> None:
        """From now on the model reads time * factor, and its configuration says so."""
        facts = replace(facts_of(self.model), time_factor=factor)
        self.family.prepare(self.model, facts)  # refuses where a family cannot
        remember(self.model, facts)
        self.time_factor = factor

    def enable_gradient_checkpointing(self) -> None:
        """Trade compute for memory: blocks are computed again in the backward pass."""
        if not self.model._supports_gradient_checkpointing:
            raise ValueError(f"{self.family.name} does not support gradient checkpointing; use a smaller micro-batch instead")
        self.model.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | Path) -> None:
        """The model as a diffusers folder: config.json and safetensors."""
        self.model.save_pretrained(folder, safe_serialization=True)


def adapt(
    model: nn.Module,
    *,
    num_classes: int | None = None,
    time_factor: float | None = None,
    num_heads: int | None = None,
    null: Mapping[str, Tensor] | None = None,
) -> Network:
    """The adapter for a model. What is given here overrides what is stored in its configuration, and is stored there.

    `num_classes` says how many rows of the class table are classes (one more row is the null label); for an
    SD3Transformer2DModel it asks for a class token. `time_factor` multiplies times (improved-diffusion at T steps: 1000/T).
    `num_heads` is for attention layers of a UNet2DModel that differ in width but not in heads. `null` is the embedding of the
    empty condition, one row per key.
    """
    family_of(model)
    given = {"num_classes": num_classes, "time_factor": time_factor, "num_heads": num_heads}
    remember(model, replace(facts_of(model), **{name: value for name, value in given.items() if value is not None}))
    return Network(model, null)
