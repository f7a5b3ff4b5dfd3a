"""The squared error of the clean estimate; with a weight (objectives/weights.py) it is every denoising loss there is."""

from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerSample, per_sample


class Denoising(AbstractPerSample):
    """mean (x0 - x0_hat)^2 per sample."""

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        return per_sample((est.x0 - est.x0_hat) ** 2)
