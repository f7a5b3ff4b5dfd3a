"""Where the tokens of a transformer stand, when it goes on at another size: the range of positions stays, the grid becomes finer.

At its own size the n tokens of a row stand at start, start + step, ...; at another size its N tokens stand at

    start + i step n/N,    i = 0 .. N - 1

so that all of them stand where positions were trained, and with N = 2n every second one where it stood before. It does not matter by which
sizes a model came to its size: back at the first, all is as it was. Positions beyond the range, which the same step would lead to, were never
trained. DiTTransformer2DModel divides its range itself, if its configuration goes on to name the first size; SD3Transformer2DModel keeps a
table beside its weights and cuts the middle out of it, so the table is written anew.
"""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid, get_2d_sincos_pos_embed
from jaxtyping import Float
from torch import Tensor

NEAR = 0.02  # how far a table may be from sines and cosines: they are rounded where weights are stored in 16 bits


def divide_grid(embed: Any, size: int) -> None:
    """Give a DiT's PatchEmbed the table of this size, which it would else compute in every forward pass."""
    side = size // embed.patch_size
    old: Tensor = embed.pos_embed
    table = get_2d_sincos_pos_embed(
        old.shape[-1], side, base_size=embed.base_size, interpolation_scale=embed.interpolation_scale, output_type="pt"
    )
    embed.register_buffer("pos_embed", table.float()[None].to(old), persistent=False)
    embed.height = embed.width = side


def rewrite_table(embed: Any, old: int, new: int) -> None:
    """Write the table of an MMDiT's PatchEmbed anew, so that its middle is the old one's at the new size; it grows where it is too small."""
    table: Tensor = embed.pos_embed
    most, width = embed.pos_embed_max_size, table.shape[-1]
    before, after = old // embed.patch_size, new // embed.patch_size
    start, step = _line(table.reshape(most, most, width))
    grown = max(most, after)
    first = start + step * ((most - before) // 2)  # where the first token stands
    finer = step * before / after
    place = first + finer * (torch.arange(grown, dtype=torch.float64) - (grown - after) // 2)
    embed.register_buffer("pos_embed", _table(place, width).reshape(1, grown * grown, width).to(table))
    embed.pos_embed_max_size = grown


def rewritten(model: Any) -> bool:
    """Whether an MMDiT's table was written anew since the model was loaded: its weights alone then belong to other positions than its file's."""
    return (
        isinstance(model, SD3Transformer2DModel)
        and model.pos_embed.base_size != model.config["sample_size"] // model.pos_embed.patch_size
    )


def _row(place: Float[Tensor, "n"], width: int) -> Float[Tensor, "n half"]:
    return get_1d_sincos_pos_embed_from_grid(width // 2, place, output_type="pt").float()


def _table(place: Float[Tensor, "n"], width: int) -> Float[Tensor, "n n width"]:
    """The column of a token, then its row."""
    row, n = _row(place, width), len(place)
    return torch.cat([row[None].expand(n, n, -1), row[:, None].expand(n, n, -1)], -1)


def _line(table: Float[Tensor, "n n width"]) -> tuple[float, float]:
    """Where the rows of a table start and how far they are apart, read from the table: its configuration knows of no rewriting."""
    table = table.detach().float().cpu()
    n, width = len(table), table.shape[-1]
    start, end = (_place(table[0, k, : width // 2]) for k in (0, -1))
    step = (end - start) / max(n - 1, 1)
    row = _row(start + step * torch.arange(n, dtype=torch.float64), width)
    off = max(float((line - torch.cat([row, row[k].expand(n, -1)], -1)).abs().max()) for k, line in enumerate(table))
    if n < 2 or off > NEAR:
        raise ValueError(
            f"the position table of this SD3Transformer2DModel ({n} x {n}) is not one of sines and cosines at even distances, so there is "
            "nothing to divide: train at the size that the model was made for"
        )
    return start, step


def _place(row: Float[Tensor, "half"]) -> float:
    """The position that a row of sines and cosines tells: roughly by the slowest, which never comes round, then ever finer."""
    sines, cosines = row.double().chunk(2)
    angles = torch.atan2(sines, cosines).tolist()
    place = 0.0
    for k in reversed(range(len(angles))):
        speed = 10000.0 ** -(k / len(angles))
        turns = round((place * speed - angles[k]) / (2 * torch.pi))
        place = (angles[k] + 2 * torch.pi * turns) / speed
    return place
