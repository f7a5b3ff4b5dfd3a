"""The model families that Percepta drives: what each may be told, which sizes it takes, and how it is called.

A family is stateless: everything it knows it reads from the model's configuration. To drive another model class, write one more
family and list it in FAMILIES. Models are typed Any here, because their configurations have no types.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from percepta.networks.cascade import Cascade
from percepta.networks.ddpmpp import DDPMPP
from percepta.networks.facts import Facts, facts_of, remember
from percepta.networks.positions import divide_grid, rewrite_table


@dataclass(frozen=True)
class Reads:
    """The conditions a network reads: labels 0 .. num_classes - 1, and named tensors with the width of their last axis.

    Where `null_label` holds, label num_classes means "no label". Keys in `optional` may be left out.
    """

    num_classes: int | None = None
    null_label: bool = False
    needed: Mapping[str, int | None] = field(default_factory=dict)
    optional: Mapping[str, int | None] = field(default_factory=dict)


class AbstractFamily(ABC):
    """One model class behind the common call. `cls` is the class, `name` what errors call it."""

    cls: type

    @property
    def name(self) -> str:
        return self.cls.__name__

    @abstractmethod
    def reads(self, model: Any, facts: Facts) -> Reads: ...

    @abstractmethod
    def step(self, model: Any) -> int:
        """Height and width must be multiples of this."""

    @abstractmethod
    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor: ...

    @abstractmethod
    def prepare(self, model: Any, facts: Facts) -> None:
        """Refuse variants that cannot be driven, and change what must change before the model is used."""

    def check_size(self, model: Any, height: int, width: int) -> str | None:
        """What is wrong with this size, if anything."""
        step = self.step(model)
        return None if height % step == 0 and width % step == 0 else f"height and width must be multiples of {step}"

    def resize(self, model: Any, size: int) -> None:
        """Make the model one for images of this side, a multiple of the step."""
        model.register_to_config(sample_size=size)


def table_reads(rows: int, facts: Facts, name: str) -> Reads:
    """Labels of a class table: all rows are classes unless the stored facts say that the last one is the null label."""
    classes = rows if facts.num_classes is None else facts.num_classes
    if classes not in (rows, rows - 1):
        raise ValueError(
            f"a {name} with a class table of {rows} rows has {rows} classes, or {rows - 1} and the null label; "
            f"got num_classes={classes}"
        )
    return Reads(classes, classes == rows - 1)


def no_classes(facts: Facts, name: str) -> None:
    if facts.num_classes is not None:
        raise ValueError(
            f"num_classes={facts.num_classes} was given, but this {name} has no class table; build it with num_class_embeds"
        )


def set_heads(model: Any, heads: int) -> None:
    """One number of heads for all attention layers, whatever their width; the class's configuration knows one head width only."""
    for module in model.modules():
        if isinstance(module, Attention):
            if module.inner_dim % heads:
                raise ValueError(f"attention over {module.inner_dim} channels cannot have num_heads={heads}")
            module.heads = heads


class UNetFamily(AbstractFamily):
    """UNet2DModel: DDPM's, improved-diffusion's and ADM's U-Nets."""

    cls = UNet2DModel

    def prepare(self, model: Any, facts: Facts) -> None:
        kind = model.config.time_embedding_type
        if kind != "positional":
            raise ValueError(
                f"a UNet2DModel with time_embedding_type={kind!r} cannot be driven: 'learned' reads whole numbers only, and "
                "'fourier' divides its output by the time, which no formulation here means; use 'positional'"
            )
        if model.config.class_embed_type is not None:
            raise ValueError(
                f"class_embed_type={model.config.class_embed_type!r} of UNet2DModel cannot be driven; "
                "use a class table: num_class_embeds"
            )
        if facts.num_heads is not None:
            set_heads(model, facts.num_heads)

    def reads(self, model: Any, facts: Facts) -> Reads:
        rows = model.config.num_class_embeds
        if rows is None:
            no_classes(facts, self.name)
            return Reads()
        return table_reads(rows, facts, self.name)

    def step(self, model: Any) -> int:
        return 2 ** (len(model.config.block_out_channels) - 1)

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        return model(x, time, labels, return_dict=False)[0]


class DiTFamily(AbstractFamily):
    """DiTTransformer2DModel. Every block has its own label table, each with a null row after the classes.

    A table of one class stands for an unconditional network. In training mode these tables drop labels themselves, each block
    on its own and with global randomness; that is switched off here, because the estimator drops a sample's condition once, for
    all blocks.
    """

    cls = DiTTransformer2DModel

    def prepare(self, model: Any, facts: Facts) -> None:
        for block in model.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0
            if facts.frequency_shift is not None:
                block.norm1.emb.time_proj.downscale_freq_shift = facts.frequency_shift
        if facts.sample_size is not None:
            divide_grid(model.pos_embed, facts.sample_size)

    def reads(self, model: Any, facts: Facts) -> Reads:
        classes: int = model.config.num_embeds_ada_norm
        if facts.num_classes not in (None, classes):
            raise ValueError(f"this {self.name} has num_embeds_ada_norm={classes} classes, got num_classes={facts.num_classes}")
        return Reads() if classes == 1 else Reads(classes, True)

    def step(self, model: Any) -> int:
        return model.config.patch_size

    def check_size(self, model: Any, height: int, width: int) -> str | None:
        return super().check_size(model, height, width) or (
            None if height == width else "a DiTTransformer2DModel makes square images only"
        )

    def resize(self, model: Any, size: int) -> None:
        """The configuration goes on to name the first size, from which the class divides its range of positions, here and anywhere."""
        remember(model, replace(facts_of(model), sample_size=None if size == model.config.sample_size else size))
        divide_grid(model.pos_embed, size)

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        labels = torch.zeros(len(x), dtype=torch.long, device=x.device) if labels is None else labels
        return model(x, time, labels, return_dict=False)[0]


class MMDiTFamily(AbstractFamily):
    """SD3Transformer2DModel, told text embeddings, or a class label as one token.

    The class token is the label's one-hot vector, num_classes + 1 wide, given both as a sequence of one token and as the pooled
    vector: the model's own input layers then are the embedding tables, and the saved model is complete. A token of width 1 is
    the constant 1: an unconditional network.
    """

    cls = SD3Transformer2DModel

    def prepare(self, model: Any, facts: Facts) -> None:
        """Nothing to change."""

    def reads(self, model: Any, facts: Facts) -> Reads:
        config = model.config
        if facts.num_classes is None and config.joint_attention_dim == config.pooled_projection_dim == 1:
            return Reads()
        if facts.num_classes is None:
            return Reads(
                needed={"encoder_hidden_states": config.joint_attention_dim, "pooled_projections": config.pooled_projection_dim}
            )
        if {config.joint_attention_dim, config.pooled_projection_dim} != {facts.num_classes + 1}:
            raise ValueError(
                f"a class token of {facts.num_classes} classes needs joint_attention_dim and pooled_projection_dim "
                f"{facts.num_classes + 1}, got {config.joint_attention_dim} and {config.pooled_projection_dim}"
            )
        return Reads(facts.num_classes, True)

    def step(self, model: Any) -> int:
        return model.config.patch_size

    def check_size(self, model: Any, height: int, width: int) -> str | None:
        config = model.config
        most = config.pos_embed_max_size * config.patch_size
        return super().check_size(model, height, width) or (
            None if max(height, width) <= most else f"its position table ends at {most} x {most}"
        )

    def resize(self, model: Any, size: int) -> None:
        rewrite_table(model.pos_embed, model.config.sample_size, size)
        model.register_to_config(sample_size=size, pos_embed_max_size=model.pos_embed.pos_embed_max_size)

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        if not named:
            labels = torch.zeros(len(x), dtype=torch.long, device=x.device) if labels is None else labels
            token = torch.nn.functional.one_hot(labels, model.config.joint_attention_dim).to(x.dtype)
            return model(x, token[:, None], token, time, return_dict=False)[0]
        tokens, pooled = named["encoder_hidden_states"].to(x.dtype), named["pooled_projections"].to(x.dtype)
        return model(x, tokens, pooled, time, return_dict=False)[0]


class ConditionUNetFamily(AbstractFamily):
    """UNet2DConditionModel: labels from a class table, text or other embeddings by cross-attention, SDXL's pooled text and
    sizes."""

    cls = UNet2DConditionModel

    def prepare(self, model: Any, facts: Facts) -> None:
        allowed = {
            "class_embed_type": (None,),
            "encoder_hid_dim_type": (None, "text_proj"),
            "addition_embed_type": (None, "text_time"),
            "time_embedding_type": ("positional",),
        }
        for name, values in allowed.items():
            got = dict(model.config)[name]
            if got not in values:
                raise ValueError(
                    f"a UNet2DConditionModel with {name}={got!r} cannot be driven; supported: {', '.join(map(repr, values))}"
                )

    def reads(self, model: Any, facts: Facts) -> Reads:
        config = model.config
        if config.num_class_embeds is None:
            no_classes(facts, self.name)
            labels = Reads()
        else:
            labels = table_reads(config.num_class_embeds, facts, self.name)
        needed: dict[str, int | None] = {}
        if any("CrossAttn" in block for block in (*config.down_block_types, *config.up_block_types, str(config.mid_block_type))):
            width = config.encoder_hid_dim or config.cross_attention_dim
            needed["encoder_hidden_states"] = width if isinstance(width, int) else width[0]
        if config.addition_embed_type == "text_time":
            needed |= {"text_embeds": None, "time_ids": None}
        optional: Mapping[str, int | None] = {"encoder_attention_mask": None} if "encoder_hidden_states" in needed else {}
        return Reads(labels.num_classes, labels.null_label, needed, optional)

    def step(self, model: Any) -> int:
        return 2 ** (len(model.config.block_out_channels) - 1)

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        tokens = named.get("encoder_hidden_states")
        added = {k: named[k] for k in ("text_embeds", "time_ids") if k in named}
        return model(
            x,
            time,
            None if tokens is None else tokens.to(x.dtype),
            class_labels=labels,
            added_cond_kwargs=added or None,
            encoder_attention_mask=named.get("encoder_attention_mask"),
            return_dict=False,
        )[0]


class DDPMPPFamily(AbstractFamily):
    """EDM's DDPM++ (percepta.networks.ddpmpp): labels, and the augmentation labels of non-leaky augmentation."""

    cls = DDPMPP

    def prepare(self, model: Any, facts: Facts) -> None:
        """Nothing to change."""

    def reads(self, model: Any, facts: Facts) -> Reads:
        config = model.config
        if facts.num_classes not in (None, config.num_classes):
            raise ValueError(f"this DDPMPP has num_classes={config.num_classes}, got {facts.num_classes}")
        optional: Mapping[str, int | None] = {"augment_labels": config.augment_dim} if config.augment_dim else {}
        return Reads(config.num_classes, config.num_classes is not None, {}, optional)

    def step(self, model: Any) -> int:
        return 2 ** (len(model.config.channel_mult) - 1)

    def resize(self, model: Any, size: int) -> None:
        """The configuration says by sizes which levels attend."""
        config = model.config
        levels = [k for k in range(len(config.channel_mult)) if config.sample_size >> k in config.attention_sizes]
        model.register_to_config(sample_size=size, attention_sizes=[size >> k for k in levels])

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        return model(x, time, labels, named.get("augment_labels"))


class CascadeFamily(AbstractFamily):
    """Cas-DM's cascade and Dual Diffusion (percepta.networks.cascade): one or two U-Nets, which read the same labels."""

    cls = Cascade

    def prepare(self, model: Any, facts: Facts) -> None:
        if facts.time_factor != 1:
            raise ValueError(
                f"a cascade looks its noise level up by the timestep, so its time cannot be scaled outside (time_factor="
                f"{facts.time_factor}); build it with its own time_factor, which its U-Nets alone read by"
            )
        for unet in model.unets:
            UNetFamily().prepare(unet, facts)

    def reads(self, model: Any, facts: Facts) -> Reads:
        return UNetFamily().reads(model, facts)

    def step(self, model: Any) -> int:
        return max(UNetFamily().step(unet) for unet in model.unets)

    def call(self, model: Any, x: Tensor, time: Tensor, labels: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        return model(x, time, labels, return_dict=False)[0]


FAMILIES: tuple[AbstractFamily, ...] = (
    UNetFamily(),
    DiTFamily(),
    MMDiTFamily(),
    ConditionUNetFamily(),
    DDPMPPFamily(),
    CascadeFamily(),
)


def family_of(model: object) -> AbstractFamily:
    for family in FAMILIES:
        if isinstance(model, family.cls):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"no adapter for {type(model).__name__}; known: {known}. For another network write a family "
        "(percepta/networks/families.py), or any module with forward(x, time, cond)"
    )
