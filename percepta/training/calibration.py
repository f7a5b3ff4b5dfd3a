"""Weights that are found before the first step: how large a loss is depends on the autoencoder, the layers and the reduction, so that a weight
which somebody printed does not carry over.

    share      w E[L] = s (E[L_0] + w E[L])                  L is a part s of the loss
    variance   w^2 Var(L) = s Var(L_0)                       what L adds to the noise of the loss is bounded (LPL, A.4)
    levels     w = w_L Var(L)/Var(L_0)                       LPL's control, equation 15: w_L is given, or found by one of the others

L_0 is the method's first term. Means are over all samples that were drawn; variances over those that the gate keeps, since L has no value beyond.
The first batches of the run are looked at, with the noise that they are trained with, and nothing is moved. What is found is a factor of the term
(Method.scales): part of each checkpoint, so that a run that is resumed measures nothing, and written in config.json and in the log.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from percepta import distributed
from percepta.estimate import Estimate
from percepta.objectives import Calibrated, Term
from percepta.rng import Rng
from percepta.training.loop import Batches
from percepta.training.method import Method
from percepta.training.precision import autocast
from percepta.training.settings import Settings
from percepta.training.step import micro_batches

BATCHES = 8


def calibrate(
    method: Method, batches: Batches, settings: Settings, device: torch.device, stream: str = "train",
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Find the weights of the terms that ask for it, keep them in the method, and return them; the same on every rank."""
    wanted = [(term, term.calibrated) for term in method.terms if term.calibrated is not None]
    if not wanted:
        return {}
    sums = {term.name: torch.zeros(6, dtype=torch.float64) for term, _ in wanted}
    for step, (ordinals, batch) in enumerate(batches(0, BATCHES)):
        batch = batch.to(device)
        for part in micro_batches(len(batch), settings.micro_batch or len(batch)):
            check()
            rng = Rng(settings.seed, ordinals, step, stream, device).select(part)
            with torch.no_grad(), autocast(settings.mixed_precision, device):
                est = method.estimate(batch.select(part), rng)
                for term, rule in wanted:
                    sums[term.name] += looked_at(method.terms[0], rule.by or term, est).cpu()
    found = {term.name: weight(rule, distributed.agreed(sums[term.name]), term.name) for term, rule in wanted}
    method.scales.update({term.name: found[term.name] / term.scale for term, _ in wanted})
    return found


def looked_at(first: Term, term: Term, est: Estimate) -> Tensor:
    """Sums over the rows: L_0 over all, how many are kept, and of those L_0, L_0^2, L and L^2."""
    plain = first.scale * first.losses(est).double()
    judged = est if term.keep is None else est.select(kept := term.keep(est))
    near = plain if term.keep is None else plain[kept.to(plain.device)]
    own = term.losses(judged).double() if len(judged) else near
    return torch.stack(
        [plain.sum(), torch.full_like(plain.sum(), len(near)), near.sum(), near.square().sum(), own.sum(), own.square().sum()]
    )


def weight(how: Calibrated, sums: Tensor, name: str) -> float:
    plain, count, near, near2, own, own2 = sums.tolist()
    if count < 2 or not 0 < own < float("inf"):
        raise ValueError(
            f"the weight of {name} cannot be found: of the first batches {count:g} samples are judged, with a loss of {own:g} in all; give "
            "the weight as a number, or judge more noise levels"
        )
    if how.rule == "share":
        return how.part / (1 - how.part) * plain / own
    other, its = near2 / count - (near / count) ** 2, own2 / count - (own / count) ** 2
    if not (other > 0 and its > 0):
        raise ValueError(f"the weight of {name} cannot be found by variances, which are {its:g} and {other:g}: give it as a number")
    if how.by is None:
        return (how.part * other / its) ** 0.5
    usual = how.by.scale if how.by.calibrated is None else weight(how.by.calibrated, sums, how.by.name)
    return usual * its / other
