"""The squared maximum mean discrepancy of two batches of features, as a training loss and as KID's estimator.

    MMD^2 = 1/(m(m-1)) sum_{i!=j} k(x_i, x_j) - 2/(mn) sum_ij k(x_i, y_j) + 1/(n(n-1)) sum_{i!=j} k(y_i, y_j)

is the unbiased estimator (Gretton et al. 2012, eq. 3; MMD-DDM's loss, eq. 7). Its mean is 0 for equal distributions, so a value slightly
below 0 is right. The biased one keeps the diagonals and divides by m^2 and n^2 (Gretton's eq. 5).
The three means are large and nearly equal, their difference is small. A constant added to the kernel changes neither estimator (c + c - 2c),
so the mean kernel value is taken off before anything is summed: float32 then keeps the digits that matter.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


class AbstractKernel(ABC):
    """k(x, y) for all pairs of rows, differentiable. Features in half precision are read as float32, and products are not autocast."""

    def __call__(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
        with torch.autocast(x.device.type, enabled=False):
            return self.pairs(_wide(x), _wide(y))

    @abstractmethod
    def pairs(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]: ...


@dataclass(frozen=True)
class Linear(AbstractKernel):
    """k = x.y: sees means only."""

    def pairs(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
        return x @ y.T


@dataclass(frozen=True)
class Polynomial(AbstractKernel):
    """k = (gamma x.y + coef0)^degree, gamma = 1/d where none is given. The defaults are KID's "cubic" (Binkowski et al. 2018)."""

    degree: int = 3
    coef0: float = 1.0
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"the degree of a polynomial kernel is at least 1, got {self.degree}")

    def pairs(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
        return (x @ y.T * (1 / x.shape[1] if self.gamma is None else self.gamma) + self.coef0) ** self.degree


CUBIC = Polynomial()


@dataclass(frozen=True)
class Rbf(AbstractKernel):
    """k = sum_q w_q exp(-|x - y|^2 / (2 s_q^2)): one bandwidth or a mixture, of equal weights unless they are given.

    Without bandwidths s^2 = d/2, as in MMD-DDM's code (the paper names none). `median_bandwidth` gives the usual heuristic.
    """

    bandwidths: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.bandwidths is not None and (not self.bandwidths or min(self.bandwidths) <= 0):
            raise ValueError(f"bandwidths are positive numbers, got {self.bandwidths}")
        if self.weights is not None and (min(self.weights, default=-1) < 0 or len(self.weights) != len(self.bandwidths or (0,))):
            raise ValueError(f"one weight of at least 0 for each bandwidth is needed, got {self.weights} for {self.bandwidths}")

    def pairs(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
        d2 = squared_distances(x, y)
        bandwidths = self.bandwidths or ((x.shape[1] / 2) ** 0.5,)
        weights = self.weights or (1 / len(bandwidths),) * len(bandwidths)
        terms = [w * torch.exp(d2 / (-2 * s**2)) for w, s in zip(weights, bandwidths, strict=True)]
        return torch.stack(terms).sum(0)


@dataclass(frozen=True)
class MedianRbf(AbstractKernel):
    """Rbf of equally weighted bandwidths that are `factors` times the median distance of the rows that `rows()` gives.

    It is asked once, when the kernel is first used: the bandwidth must not move while something is trained with it.
    """

    rows: Callable[[], Float[Tensor, "n d"]]
    factors: tuple[float, ...] = (1.0,)
    _made: list[Rbf] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) <= 0:
            raise ValueError(f"multiples of the median distance are positive numbers, got {self.factors}")

    @property
    def rbf(self) -> Rbf:
        if not self._made:
            rows = self.rows()
            median = median_bandwidth(rows, rows[:0])
            self._made.append(Rbf(tuple(factor * median for factor in self.factors)))
        return self._made[0]

    def pairs(self, x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
        return self.rbf.pairs(x, y)


def kernel_named(name: str, bandwidth: str | None, rows: Callable[[], Tensor]) -> AbstractKernel:
    """cubic, linear or rbf; `bandwidth` is rbf's: numbers or multiples of the median distance of `rows()`, with commas between.

    "8,16" is a mixture of two, "0.5*median,median,2*median" one of three, None is s^2 = d/2.
    """
    if name not in ("cubic", "linear", "rbf"):
        raise ValueError(f"unknown kernel {name!r}; known: cubic, linear, rbf")
    if bandwidth is None:
        return {"cubic": CUBIC, "linear": Linear(), "rbf": Rbf()}[name]
    if name != "rbf":
        raise ValueError(f"--bandwidth belongs to --kernel rbf, got --kernel {name}")
    parts = [part.strip() for part in bandwidth.split(",") if part.strip()]
    values = tuple(_bandwidth(part) for part in parts)
    medians = [part.endswith("median") for part in parts]
    if not parts or len(set(medians)) > 1:
        raise ValueError(f"--bandwidth {bandwidth}: give numbers, or multiples of the median, not both")
    return MedianRbf(rows, values) if medians[0] else Rbf(values)


def _bandwidth(part: str) -> float:
    """The number in 8, median or 0.5*median."""
    try:
        value = 1.0 if part == "median" else float(part.removesuffix("median").removesuffix("*"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--bandwidth {part}: a number above 0, `median`, or a multiple of it as 0.5*median")
    return value


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def squared_distances(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """|x_i - y_j|^2 by a matrix product, about the mean of y: features far from the origin lose no digits."""
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    d2 = torch.addmm((x * x).sum(1, keepdim=True) + (y * y).sum(1), x, y.T, alpha=-2)
    return d2.clamp(min=0)  # rounding can leave -1e-7 for equal rows


@torch.no_grad()
def median_bandwidth(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> float:
    """The median distance between different rows of x and y together: the usual bandwidth of a radial kernel."""
    rows = _wide(torch.cat([x, y]))
    if len(rows) < 2:
        raise ValueError(f"a median distance needs two rows or more, got {len(rows)}")
    above = torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device).triu(1)
    median = squared_distances(rows, rows)[above].median().sqrt().item()
    if median == 0:
        raise ValueError("half of all pairs of rows are equal: their median distance, 0, is no bandwidth")
    return median


def mmd2(
    x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], kernel: AbstractKernel = CUBIC, unbiased: bool = True
) -> Float[Tensor, ""]:
    """The squared MMD of the rows of x and y. Gradients reach whichever of the two asks for them."""
    m, n = len(x), len(y)
    if min(m, n) < (2 if unbiased else 1):
        raise ValueError(
            f"the {'unbiased' if unbiased else 'biased'} MMD needs {2 if unbiased else 1} rows a side or more, got {m} and {n}"
        )
    k_xy = kernel(x, y)
    c = k_xy.detach().mean()
    k_xx, k_yy = kernel(x, x) - c, kernel(y, y) - c
    if unbiased:
        within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (m * (m - 1))
        within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (n * (n - 1))
    else:
        within_x, within_y = k_xx.mean(), k_yy.mean()
    return within_x - 2 * (k_xy - c).mean() + within_y
