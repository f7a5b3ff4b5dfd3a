"""Differences between two sets of features, as pure differentiable functions: what objectives minimise and metrics report."""

from percepta.discrepancies.frechet import Gaussian, frechet, frechet_of_rows, squared_frechet
from percepta.discrepancies.mmd import CUBIC, AbstractKernel, Linear, Polynomial, Rbf, median_bandwidth, mmd2

__all__ = [
    "CUBIC",
    "AbstractKernel",
    "Gaussian",
    "Linear",
    "Polynomial",
    "Rbf",
    "frechet",
    "frechet_of_rows",
    "median_bandwidth",
    "mmd2",
    "squared_frechet",
]
