"""The class table of a network: which weights it is, and a fresh one for other classes.

A new table has a row for each class and the null label behind them, number num_classes: dropping a label and guidance find it there. The null row is
the one that the network had, or what it computes without a class: images without a label are as they were, to the bit. The other rows are
drawn as for a network from scratch; where there was no table they are zero, so that training starts from the network as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from percepta.networks.adapter import Network
from percepta.networks.cascade import Cascade
from percepta.networks.ddpmpp import DDPMPP, linear
from percepta.networks.facts import facts_of, remember

DIT_STD = 0.02  # Peebles and Xie 2023
MMDIT_STD = {"context_embedder": 0.02, "linear_1": 0.2}  # percepta.networks.initial


def class_table(model: Any) -> dict[str, nn.Parameter]:
    """The weights that only classes reach, by name; none where the network knows no classes. A MMDiT's columns are its embeddings."""
    every: dict[str, nn.Parameter] = dict(model.named_parameters())  # what is shared has one name
    return {name: every[name] for name in _names(model) if name in every}


def _names(model: Any) -> list[str]:
    if isinstance(model, DiTTransformer2DModel):
        known = model.config["num_embeds_ada_norm"] > 1  # one class stands for none
        return [name for name, _ in model.named_parameters() if name.endswith("class_embedder.embedding_table.weight") and known]
    if isinstance(model, SD3Transformer2DModel):
        classes = facts_of(model).num_classes is not None
        return ["context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"] if classes else []
    return ["class_embedding.weight", "label_in.weight", "theta.class_embedding.weight", "phi.class_embedding.weight"]


def new_classes(network: Network, num_classes: int, seed: int) -> None:
    """Give the network a table for these classes, in its configuration too. What is drawn follows from the seed alone."""
    model, cls = network.model, type(network.model)
    if cls not in TABLES or network.reads.needed:
        raise ValueError(
            f"a {cls.__name__} that is told {', '.join(network.reads.needed) or 'nothing'} has no class table to renew"
        )
    if num_classes == 1 and cls in (DiTTransformer2DModel, SD3Transformer2DModel):
        raise ValueError(f"the data has one class, which for a {cls.__name__} means none: train with --conditional no")
    null = network.num_classes if network.reads.null_label else None if network.num_classes is not None else 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        TABLES[cls](model, num_classes, null)
    remember(model, replace(facts_of(model), num_classes=num_classes))
    network.reads = network.family.reads(model, facts_of(model))


def _rows(old: Tensor, num_classes: int, null: int | None, std: float) -> nn.Parameter:
    """Fresh rows, the last one the old null row where there was one."""
    made = torch.randn(num_classes + 1, old.shape[1]).to(old) * std
    if null is not None:
        made[-1] = old[null]
    return nn.Parameter(made)


def _dit(model: Any, num_classes: int, null: int | None) -> None:
    """Blocks that held the same table do so again."""
    embedders = [block.norm1.emb.class_embedder for block in model.transformer_blocks]
    old = [embedder.embedding_table.weight for embedder in embedders]
    first = _rows(old[0], num_classes, null, DIT_STD)
    for table, embedder in zip(old, embedders, strict=True):
        like = table.is_meta or torch.equal(table, old[0])
        rows = nn.Parameter(first.detach().clone()) if like else _rows(table, num_classes, null, DIT_STD)
        embedder.embedding_table = nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows)
        embedder.num_classes = num_classes
    model.register_to_config(num_embeds_ada_norm=num_classes)


def _mmdit(model: Any, num_classes: int, null: int | None) -> None:
    """Layers that read a one-hot vector: the table's rows are their columns, and their biases stay."""
    for owner, name in ((model, "context_embedder"), (model.time_text_embed.text_embedder, "linear_1")):
        old: nn.Linear = getattr(owner, name)
        rows = _rows(old.weight.T, num_classes, null, MMDIT_STD[name])
        made = nn.Linear(num_classes + 1, old.out_features, device="meta")
        made.weight, made.bias = nn.Parameter(rows.T.contiguous()), old.bias
        setattr(owner, name, made)
    model.register_to_config(joint_attention_dim=num_classes + 1, pooled_projection_dim=num_classes + 1)


def _unet(model: Any, num_classes: int, null: int | None) -> None:
    old, width = model.class_embedding, model.time_embedding.linear_2.out_features
    table = torch.zeros(1, width).to(model.time_embedding.linear_2.weight) if old is None else old.weight
    rows = _rows(table, num_classes, null, 0.0 if old is None else 1.0)  # torch's embeddings are drawn with deviation 1
    model.class_embedding = nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows)
    model.register_to_config(num_class_embeds=num_classes + 1)


def _cascade(model: Any, num_classes: int, null: int | None) -> None:
    for unet in model.unets:
        _unet(unet, num_classes, null)
    model.register_to_config(num_class_embeds=num_classes + 1)


def _ddpmpp(model: Any, num_classes: int, null: int | None) -> None:
    """The null label is a row of zeros before the layer, so that its bias is what stays."""
    old, width = model.label_in, model.time_in.in_features
    made: Any = linear(num_classes, width).to(model.time_in.weight)
    if old is None:
        made.weight.zero_()
    else:
        made.bias = old.bias
    model.label_in = made
    model.register_to_config(num_classes=num_classes)


TABLES: Mapping[type, Callable[[Any, int, int | None], None]] = {
    DiTTransformer2DModel: _dit, SD3Transformer2DModel: _mmdit, UNet2DModel: _unet, UNet2DConditionModel: _unet, DDPMPP: _ddpmpp,
    Cascade: _cascade,
}  # fmt: skip
