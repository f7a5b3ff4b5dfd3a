"""Mmd: the squared maximum mean discrepancy of generated and real features (MMD-DDM, eq. 7), as an objective of the whole batch.

The kernel batch is the global one: ranks gather their features with gradient, and what splits the batch for memory's sake does not
change the loss. The real side has no gradient.
"""

from jaxtyping import Float
from torch import Tensor

from percepta.discrepancies.mmd import CUBIC, AbstractKernel, mmd2
from percepta.distributed import gather_rows
from percepta.estimate import Estimate
from percepta.objectives.rows import MEMORY, Clamp, Rows
from percepta.objectives.term import AbstractPerBatch
from percepta.spaces import Space


class Mmd(AbstractPerBatch):
    """MMD^2 in the first feature of `space`, one row per image. `chunk`: images that go through the space at a time.

    `memory`: bytes of real features to keep, which need a `chunk`; 0 for none.
    """

    def __init__(
        self,
        space: Space,
        kernel: AbstractKernel = CUBIC,
        chunk: int | None = None,
        clamp: Clamp = "straight",
        memory: int = MEMORY,
    ) -> None:
        self.space, self.kernel = space, kernel
        self.rows = Rows(space, chunk, clamp, memory)

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        real = self.rows.real(est.x0)
        return mmd2(gather_rows(self.rows(est.x0_hat)), gather_rows(real), self.kernel)
