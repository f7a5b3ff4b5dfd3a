"""One optimizer step: every player's turn, over all micro-batches and ranks.

With the rows of the global batch B shared out over ranks and micro-batches, each part's loss counts with its share of the rows; the
gradient, and every number that is logged, is that of the whole batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from percepta import distributed
from percepta.estimate import Batch
from percepta.rng import Rng, mix
from percepta.training.method import Method, Turn
from percepta.training.optim import clip_gradients, set_lr
from percepta.training.precision import autocast
from percepta.training.settings import Settings
from percepta.training.state import Player, State


@dataclass(frozen=True)
class Report:
    """What a step gave: terms and gradient norms by name, what was not finite, and whether any rank was asked to stop."""

    losses: dict[str, float]
    norms: dict[str, float]
    bad: str | None = None
    stop: bool = False


def take_step(method: Method, state: State, settings: Settings, batch: Batch, rng: Rng, asked: bool = False) -> Report:
    """Move every player once. A turn whose loss or gradient is not finite moves nothing, and ends the step."""
    parts = _parts(len(batch), len(batch) if method.whole_batch else settings.micro_batch or len(batch))
    makers = [method.step(batch.select(part), rng.select(part)) for part in parts]
    shares = [(part.stop - part.start) / settings.batch for part in parts]
    losses: dict[str, float] = {}
    norms: dict[str, float] = {}
    stop = False
    # the parts take each turn together: a turn sees what the turns before it moved, in every part
    for turns in zip(*(_forward(maker, part, rng, settings, state) for part, maker in enumerate(makers)), strict=True):
        player = state.players[turns[0].player]
        for turn, share in zip(turns, shares, strict=True):
            _backward(turn, share, player)
        logs = torch.stack(
            [sum((t.logs[k] * w for t, w in zip(turns, shares, strict=True)), torch.zeros(())) for k in turns[0].logs]
        )
        logs = distributed.summed(torch.cat([logs.float(), torch.full((1,), float(asked), device=logs.device)]))
        distributed.reduce_gradients(player.params)
        if player.scaler is not None:
            player.scaler.unscale_(player.optimizer)
        norm = clip_gradients(player.params, settings.clip)
        *values, stops, size = torch.cat([logs, norm.to(logs).reshape(1)]).tolist()  # the turn's only synchronisation
        losses |= dict(zip(turns[0].logs, values, strict=True))
        norms[player.name] = size
        stop = stops > 0
        bad = _not_finite(dict(zip(turns[0].logs, values, strict=True)), size, player)
        if bad is not None:
            player.optimizer.zero_grad(set_to_none=True)
            return Report(losses, norms, bad, stop)
        set_lr(player.optimizer, state.schedule.lr_at(state.step + 1 if settings.warmup else state.step))
        _move(player)
    return Report(losses, norms, None, stop)


def _parts(rows: int, most: int) -> list[slice]:
    return [slice(first, min(first + most, rows)) for first in range(0, rows, most)]


def _forward(maker: Iterator[Turn], part: int, rng: Rng, settings: Settings, state: State) -> Iterator[Turn]:
    """A method's turns, computed in the run's precision. Dropout draws from torch's own generator, seeded per step, rank and part."""
    while True:
        torch.manual_seed(mix(settings.seed, state.stream, "torch", state.step, distributed.world().rank, part))
        with autocast(settings.mixed_precision, rng.device):
            turn = next(maker, None)
        if turn is None:
            return
        yield turn


def _backward(turn: Turn, share: float, player: Player) -> None:
    scale = share if player.scaler is None else share * player.scaler.scale(torch.ones((), device=turn.loss.device)).item()
    if turn.backward is not None:
        turn.backward(scale)
    else:
        torch.autograd.backward(turn.loss * scale, inputs=player.params)


def _not_finite(losses: dict[str, float], norm: float, player: Player) -> str | None:
    """What is wrong, or None. A gradient that overflows fp16 is not: the scaler skips that step and lowers its scale."""
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"term {name!r} is {value}"
    if not math.isfinite(norm) and player.scaler is None:
        from percepta.training.optim import nonfinite

        where = nonfinite(player.module.named_parameters())
        return f"the gradient of player {player.name!r} is {norm} (first in {where[0] if where else 'the clipping norm'})"
    return None


def _move(player: Player) -> None:
    if player.scaler is None:
        player.optimizer.step()
    else:
        player.scaler.step(player.optimizer)
        player.scaler.update()
    player.optimizer.zero_grad(set_to_none=True)
