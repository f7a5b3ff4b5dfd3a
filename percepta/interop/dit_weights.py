"""DiT's published weights (Peebles and Xie 2023) as DiTTransformer2DModel.

Two details differ between the published network and diffusers' class. The time's frequencies are 10000^(-i/128) there and 10000^(-i/127) in the
class: the right ones are kept as a fact (percepta.networks.facts) and set when the network is adapted. And the second layer norm of a
block has epsilon 1e-6 there, 1e-5 in converted folders.
"""

import math

from diffusers import DiTTransformer2DModel
from torch import Tensor

from percepta.interop.state import State

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # the widths of the paper's table 1: S, B, L, XL
TOLERANCE = 1e-4  # of the position table, whose published values were computed in another precision


def convert_dit(weights: dict[str, Tensor], num_heads: int | None = None) -> DiTTransformer2DModel:
    """The network; its frequencies are corrected by adapt, from the facts stored in its configuration."""
    state = State(weights, "x_embedder.proj.weight", "a DiT")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = HEADS.get(width) if num_heads is None else num_heads
    if heads is None or width % heads:
        raise ValueError(
            f"weights do not tell how a DiT of width {width} splits attention: give num_heads, a divisor of {width}, got {num_heads}"
        )
    side = math.isqrt(state["pos_embed"].shape[-2])
    out = state["final_layer.linear.weight"].shape[0] // patch**2
    depth = state.count("blocks")
    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=channels, out_channels=out, num_layers=depth,
        sample_size=side * patch, patch_size=patch, num_embeds_ada_norm=state["y_embedder.embedding_table.weight"].shape[0] - 1, norm_eps=1e-6,
    )  # fmt: skip
    _check_positions(model, state.take("pos_embed"))
    model.load_state_dict(_renamed(state, depth))
    return model.eval()


def _check_positions(model: DiTTransformer2DModel, table: Tensor) -> None:
    """Positions are computed by the class; a table of other values (a learned one) cannot be kept."""
    own = model.pos_embed.pos_embed
    assert isinstance(own, Tensor)
    if table.reshape(own.shape[-2], -1).shape != own.shape[-2:] or float((table.reshape(own.shape) - own).abs().max()) > TOLERANCE:
        raise ValueError("the position table is not the sine-cosine table of a square grid; DiTTransformer2DModel knows no other")


def _renamed(state: State, depth: int) -> dict[str, Tensor]:
    new: dict[str, Tensor] = {}

    def plain(old: str, name: str) -> None:
        new[f"{name}.weight"], new[f"{name}.bias"] = state.take(f"{old}.weight"), state.take(f"{old}.bias")

    for theirs, ours in {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }.items():
        plain(theirs, ours)
    for i in range(depth):
        old, name = f"blocks.{i}", f"transformer_blocks.{i}"
        # every block of the class has its own copy of the time's and the class's embedding; the published network shares one
        for theirs, ours in {
            "t_embedder.mlp.0": "timestep_embedder.linear_1",
            "t_embedder.mlp.2": "timestep_embedder.linear_2",
        }.items():
            plain(theirs, f"{name}.norm1.emb.{ours}")
        new[f"{name}.norm1.emb.class_embedder.embedding_table.weight"] = state.take("y_embedder.embedding_table.weight")
        for theirs, ours in {
            "adaLN_modulation.1": "norm1.linear",
            "attn.proj": "attn1.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
        }.items():
            plain(f"{old}.{theirs}", f"{name}.{ours}")
        for kind in ("weight", "bias"):
            for part, values in zip("qkv", state.take(f"{old}.attn.qkv.{kind}").chunk(3), strict=True):
                new[f"{name}.attn1.to_{part}.{kind}"] = values
    state.finish()
    return new
