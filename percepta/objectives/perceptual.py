"""Perceptual reconstruction: L1 between features over an image pyramid."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerSample, per_sample
from percepta.spaces import Space


class PyramidL1(AbstractPerSample):
    """sum over scales 1, 1/2, 1/4, 1/8 and over the space's layers of the mean absolute difference of features.

    The loss that LaDiffGAN's autoencoders are trained with (eq. S3; the pyramid of First Order Motion): `scales` levels, fewer where
    the image becomes smaller than the space reads.
    """

    def __init__(self, space: Space, scales: int = 4) -> None:
        if scales < 1:
            raise ValueError(f"at least one scale is needed, got {scales}")
        self.space = space
        self.scales = scales

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        real, fake = est.x0, est.x0_hat
        total = per_sample(fake[:, :1] * 0)
        for scale in range(self.scales):
            if scale:
                if min(fake.shape[2:]) // 2 < self.space.reads.min_size:
                    break
                real, fake = avg_pool2d(real, 2), avg_pool2d(fake, 2)
            f_real, f_fake = Estimate(fake, real).features(self.space) if scale else est.features(self.space)
            for r, f in zip(f_real, f_fake, strict=True):
                total = total + per_sample((r - f).abs())
        return total
