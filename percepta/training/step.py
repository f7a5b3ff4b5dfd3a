"""One optimizer step: every player's turn, over all micro-batches and ranks.

With the rows of the global batch B shared out over ranks and micro-batches, each part's loss counts with its share of the rows; the
gradient, and every number that is logged, is that of the whole batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from percepta import distributed
from percepta.estimate import Batch
from percepta.objectives.term import Settles
from percepta.rng import Rng, mix, seed_torch
from percepta.training.method import Method, Turn
from percepta.training.optim import clip_gradients, set_lr
from percepta.training.precision import CUDA_GRAPHS, autocast
from percepta.training.settings import Settings
from percepta.training.shares import Shares
from percepta.training.state import Player, State


@dataclass(frozen=True)
class Report:
    """What a step gave: terms and gradient norms by name, what was not finite, and whether any rank was asked to stop.

    `shares` are those of the terms in the gradient, in steps that measure them. `beyond` is a limit that was passed.
    """

    losses: dict[str, float]
    norms: dict[str, float]
    bad: str | None = None
    stop: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    beyond: str | None = None


def take_step(
    method: Method, state: State, settings: Settings, batch: Batch, rng: Rng, asked: Callable[[], bool] = lambda: False,
    shares: Shares | None = None,
) -> Report:  # fmt: skip
    """Move every player once. A turn whose loss or gradient is not finite, or that passes a limit, moves nothing, and ends the step.

    `asked` says whether this rank is to stop: it is called after the work of each turn, so that a signal in a step ends with it.
    `shares`, given in some steps, takes the terms' gradients by the way.
    """
    if settings.compile in CUDA_GRAPHS and rng.device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()
    parts = micro_batches(len(batch), len(batch) if method.whole_batch else settings.micro_batch or len(batch))
    makers = [(method.step(batch.select(part), rng.select(part)), (part.stop - part.start) / settings.batch) for part in parts]
    losses: dict[str, float] = {}
    norms: dict[str, float] = {}
    stop = False
    for number in count():
        taken = _accumulate(makers, number, settings, state, rng.device, shares)
        if taken is None:
            return Report(losses, norms, None, stop, {} if shares is None else shares.values())
        player, logs, turn = taken
        summed = distributed.summed(torch.stack([*logs.values(), torch.full((), float(asked()), device=rng.device)]))
        distributed.reduce_gradients(player.params)
        if player.scaler is not None:
            player.scaler.unscale_(player.optimizer)
        norm = clip_gradients(player.params, player.clip)
        *values, stops, size = torch.cat([summed, norm.to(summed).reshape(1)]).tolist()  # the turn's only synchronisation
        told = dict(zip(logs, values, strict=True))
        losses |= told
        norms[player.name] = size
        stop = stops > 0
        bad, beyond = _not_finite(told, size, player), _beyond(told, turn)
        if bad is not None or beyond is not None:
            player.optimizer.zero_grad(set_to_none=True)
            if player.scaler is not None:
                player.scaler.update()  # ends its step: the next one unscales anew
            return Report(losses, norms, bad, stop, beyond=beyond)
        set_lr(player.optimizer, player.pace * state.schedule.lr_at(state.step + 1 if settings.warmup else state.step))
        _move(player)
    raise AssertionError("a method's turns end")


def micro_batches(rows: int, most: int) -> list[slice]:
    """The rows in parts of at most so many."""
    return [slice(first, min(first + most, rows)) for first in range(0, rows, most)]


def _accumulate(
    makers: Sequence[tuple[Iterator[Turn], float]], number: int, settings: Settings, state: State, device: torch.device,
    shares: Shares | None,
) -> tuple[Player, dict[str, Tensor], Turn] | None:  # fmt: skip
    """The next turn of every part, forward and backward one part after the other: one graph is alive at a time. None at the end.

    All parts take a turn before any takes the next: a turn sees what the turns before it moved. Dropout draws from torch's own
    generator, seeded per step, turn, rank and part.
    """
    rank = distributed.world().rank
    last: tuple[Player, Turn] | None = None
    logs: dict[str, Tensor] = {}
    for part, (maker, share) in enumerate(makers):
        seed_torch(mix(settings.seed, state.stream, "torch", state.step, number, rank, part), device)
        with autocast(settings.mixed_precision, device):
            turn = next(maker, None)
        if turn is None:
            assert last is None, "every part takes the same turns"
            continue
        player = state.players[turn.player]
        if shares is not None:
            shares.add(turn, share, player)
        _backward(turn, share, player, alone=len(state.players) == 1)
        for name, value in turn.logs.items():
            logs[name] = logs.get(name, 0) + value.float() * share
        last = player, replace(turn, loss=turn.loss.detach(), backward=None, terms=None, alone=None)  # its graph goes
    return None if last is None else (last[0], logs, last[1])


def _backward(turn: Turn, share: float, player: Player, alone: bool) -> None:
    """The gradient of this player, and of no other; where there is no other, autograd need not be told, which costs 2% of a small step."""
    if turn.backward is not None:
        turn.backward(share if player.scaler is None else share * player.scaler.get_scale())
    else:
        loss = turn.loss * share
        torch.autograd.backward(
            loss if player.scaler is None else player.scaler.scale(loss), inputs=None if alone else player.params
        )


def _not_finite(losses: dict[str, float], norm: float, player: Player) -> str | None:
    """What is wrong, or None. A gradient that overflows fp16 is not, while there is a scale to lower: the scaler skips that step."""
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"term {name!r} is {value}"
    if not math.isfinite(norm) and (player.scaler is None or player.scaler.get_scale() <= 1):
        from percepta.training.optim import nonfinite

        where = nonfinite(player.module.named_parameters())
        return f"the gradient of player {player.name!r} is {norm} (first in {where[0] if where else 'the clipping norm'})"
    return None


def _beyond(told: dict[str, float], turn: Turn) -> str | None:
    """A number that its turn bounds, and what to do."""
    for name, (most, advice) in turn.limits.items():
        if told[name] > most:
            return f"{name} is {told[name]:.3g}, above {most:g}: {advice}"
    return None


def _move(player: Player) -> None:
    if player.scaler is None:
        player.optimizer.step()
    else:
        player.scaler.step(player.optimizer)
        player.scaler.update()
    if isinstance(player.module, Settles):
        player.module.settle()
    player.optimizer.zero_grad(set_to_none=True)
