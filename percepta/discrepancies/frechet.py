"""The Frechet (2-Wasserstein) distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, eq. 6):

    d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

With any roots R^T R = C the last trace is the sum of the singular values of R_a R_b^T, so no square root of a matrix is ever taken:
  both covariances well conditioned   C_a = L L^T, and the eigenvalues of the symmetric L^T C_b L are those of C_a C_b: the fastest way
  ill conditioned                     singular values of L_a^T L_b, which squares nothing
  fewer rows than dimensions          singular values of the Gram matrix X_a X_b^T of the centred rows: exact, and small
  singular, rows unknown              roots from eigenvectors; eigenvalues below rounding count as 0
General eigenvalues of C_a C_b (torch-fidelity) or its matrix root (pytorch-fid) take 10 to 40 times as long, and lose half the
digits where a covariance is singular: a zero eigenvalue of the product comes back as 1e-16 of the largest, and its root as 1e-8.
Everything is float64 and differentiable.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

WELL = (
    1e-6  # least ratio of squared pivots for the fastest way: the product's condition stays below 1e12, rooted rounding below 1e-9
)


class Gaussian:
    """Mean and covariance, in float64, of `count` rows (None: not known). `root`, where given, holds centred rows: root^T root = cov."""

    def __init__(
        self,
        mean: Float64[Tensor, "d"],
        cov: Float64[Tensor, "_ _"] | None,
        count: int | None = None,
        root: Float64[Tensor, "n d"] | None = None,
    ) -> None:
        if cov is None and root is None:
            raise ValueError("a Gaussian needs a covariance or a root of it")
        shape = (len(mean), len(mean))
        if cov is not None and tuple(cov.shape) != shape:
            raise ValueError(f"a mean of {len(mean)} numbers needs a covariance of {shape}, got {tuple(cov.shape)}")
        self.mean = mean
        self.count = count
        self.root = root
        self._cov = cov

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> "Gaussian":
        """Of rows that fit in memory (`Moments` streams them); for fewer rows than dimensions this is the exact way, and the fast one."""
        if len(rows) < 2:
            raise ValueError(f"a covariance needs two rows or more, got {len(rows)}")
        rows = rows.double()
        mean = rows.mean(0)
        root = (rows - mean) / (len(rows) - 1) ** 0.5
        if len(rows) <= rows.shape[1]:
            return cls(mean, None, len(rows), root)
        return cls(mean, root.T @ root, len(rows))

    @property
    def cov(self) -> Float64[Tensor, "d d"]:
        if self._cov is None:
            assert self.root is not None
            self._cov = self.root.T @ self.root
        return self._cov

    def trace(self) -> Float64[Tensor, ""]:
        return self._cov.diagonal().sum() if self._cov is not None else self.root.square().sum()  # pyright: ignore[reportOptionalMemberAccess]

    def short_root(self) -> Float64[Tensor, "n d"] | None:
        """The centred rows, where they are fewer than the dimensions."""
        return self.root if self.root is not None and len(self.root) <= len(self.mean) else None


def _cholesky(g: Gaussian) -> tuple[Tensor | None, float]:
    """(L, its least squared pivot over its largest); no L where the covariance is singular to rounding."""
    d = len(g.mean)
    if g.short_root() is not None or (g.count is not None and g.count <= d):
        return None, 0.0  # rank d is impossible, though rounding might let Cholesky pass
    low, failed = torch.linalg.cholesky_ex(g.cov)
    if failed.item():
        return None, 0.0
    pivots = low.detach().diagonal().square()
    ratio = (pivots.min() / pivots.max()).item()
    return (low, ratio) if ratio > 10 * d * torch.finfo(torch.float64).eps else (None, 0.0)


def _root(g: Gaussian, low: Tensor | None) -> Tensor:
    """Some R with R^T R = cov."""
    short = g.short_root()
    if short is not None:
        return short
    if low is not None:
        return low.T
    values, vectors = torch.linalg.eigh(g.cov)
    least = values[-1].abs() * len(values) * torch.finfo(torch.float64).eps
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(
            f"a covariance has no negative eigenvalue, this one has {values[0].item():.3g} (largest {values[-1].item():.3g})"
        )
    kept = values > least
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def _congruence(low: Tensor, cov: Tensor, panels: int = 4) -> Tensor:
    """L^T C L. Without gradients only what eigvalsh reads, the lower triangle, and without L's zeros: less than half the work."""
    if torch.is_grad_enabled() and (low.requires_grad or cov.requires_grad):
        return low.T @ cov @ low
    d = len(low)
    cuts = [slice(k * d // panels, (k + 1) * d // panels) for k in range(panels)]
    right = torch.cat([cov[:, c.start :] @ low[c.start :, c] for c in cuts], 1)
    out = torch.zeros_like(cov)
    for c in cuts:
        out[c, : c.stop] = low[c.start :, c].T @ right[c.start :, : c.stop]
    return out


def _trace_of_root(a: Gaussian, b: Gaussian) -> Tensor:
    """tr((C_a C_b)^(1/2))."""
    (low_a, well_a), (low_b, well_b) = _cholesky(a), _cholesky(b)
    if low_a is not None and low_b is not None and min(well_a, well_b) > WELL:
        return torch.linalg.eigvalsh(_congruence(low_a, b.cov)).clamp(min=0).sqrt().sum()  # all positive but for rounding
    return torch.linalg.svdvals(_root(a, low_a) @ _root(b, low_b).T).sum()


def squared_frechet(a: Gaussian, b: Gaussian) -> Float64[Tensor, ""]:
    """d^2, differentiable. Equal Gaussians can give a few 1e-13 of the trace on either side of 0."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Gaussians of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared: were other layers read?")
    for g in (a, b):
        if not (torch.isfinite(g.mean).all() and torch.isfinite(g.trace())):
            raise ValueError("the mean or the covariance is not finite: some features are NaN or infinite")
    return (a.mean - b.mean).square().sum() + a.trace() + b.trace() - 2 * _trace_of_root(a, b)


@torch.no_grad()
def frechet(a: Gaussian, b: Gaussian) -> float:
    """FID in Inception's pool features, FD elsewhere: the squared distance, as everybody reports it."""
    return squared_frechet(a, b).item()


def frechet_of_rows(
    a: Float[Tensor, "m d"] | Float[np.ndarray, "m d"], b: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]
) -> float:
    """The same, of rows that fit in memory in float64."""
    return frechet(*(Gaussian.of(x if isinstance(x, Tensor) else torch.from_numpy(x.astype("float64"))) for x in (a, b)))
