"""Weights that follow a wanted share of the gradient: what a weight of 0.1 comes to depends on the metric, the images and the step.

At each measurement (percepta.training.shares) the weight of a term with a wanted share s, found at p, is multiplied by the square root of
s/(1-s) (1-p)/p: measured on one batch, p is rough, and the root goes half the way. The factors are part of a checkpoint.
"""

from collections.abc import Mapping

from percepta.training.method import Method

MOST = 10.0  # a factor beyond is a measurement that went wrong


def balance(method: Method, shares: Mapping[str, float]) -> None:
    """After a measurement; the same on every rank."""
    for term in method.terms:
        found, wanted = shares.get(term.name, 0.0), term.share
        if wanted is not None and 0 < found < 1:
            factor = (wanted / (1 - wanted) * (1 - found) / found) ** 0.5
            method.scales[term.name] = method.scales.get(term.name, 1.0) * min(max(factor, 1 / MOST), MOST)


def weights_now(method: Method) -> dict[str, float]:
    """The weights that nobody gave as numbers, for the log: those that move, and those that were found on the first batches."""
    moving = {t.name: t.scale * method.scales.get(t.name, 1.0) for t in method.terms if t.share is not None}
    return {f"weight/{name}": value for name, value in (moving | calibrated_weights(method)).items()}


def calibrated_weights(method: Method) -> dict[str, float]:
    """Those that were found on the first batches (percepta.training.calibration)."""
    return {t.name: t.scale * method.scales[t.name] for t in method.terms if t.calibrated is not None and t.name in method.scales}
