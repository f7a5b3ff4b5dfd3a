"""P4 to P7: from rows of features to values, against torch-fidelity, torchmetrics and pytorch-fid on the same rows.

    python bench/distances.py [--quick] [--json] [--threads N] [--only P4 P5 P6 P7]

Both sides run in turn in one process; medians and ratios (peer's time over ours), with the two values beside each other. Rows are drawn,
not read from images: 48 common directions and some noise, cut at 0 as Inception's last layer is. Times do not depend on what rows say.
--quick takes 512 dimensions and a fifth of the rows; goals are for the full size.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import about, finish, headline, interleaved, medians, parser, printer
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part
from torchmetrics.image.fid import _compute_fid

from percepta.discrepancies.frechet import Gaussian, frechet, frechet_of_rows
from percepta.evaluation.kid import kid
from percepta.evaluation.manifold import precision_recall
from percepta.evaluation.moments import Moments

Sides = dict[str, Callable[[], Any]]  # "ours" first


def rows(count: int, dims: int, seed: int, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(48, dims, generator=torch.Generator().manual_seed(0))
    latent = torch.randn(count, 48, generator=draw) * scale
    return (latent @ directions + 0.5 * torch.randn(count, dims, generator=draw)).relu_().mul_(0.1)


def frechet_sides(n: int, dims: int) -> Sides:
    """From means and covariances to the value."""
    real, fake = (Moments.of(rows(n, dims, seed, scale)) for seed, scale in ((1, 1.0), (2, 0.95)))
    stats = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (real, fake)]
    pairs = [(m.mean, m.covariance) for m in (real, fake)]
    return {
        "ours": lambda: frechet(*(Gaussian(mean, cov, n) for mean, cov in pairs)),
        "torch-fidelity": lambda: fid_statistics_to_metric(*stats, False)["frechet_inception_distance"],
        "torchmetrics": lambda: _compute_fid(*pairs[0], *pairs[1]).item(),
    }


def few_rows_sides(n: int, dims: int) -> Sides:
    """From fewer rows than dimensions to the value."""
    real, fake = rows(n, dims, 1), rows(n, dims, 2, 0.95)
    a, b = real.double().numpy(), fake.double().numpy()
    stats = [s for r in (a, b) for s in (r.mean(0), np.cov(r, rowvar=False))]
    return {"ours": lambda: frechet_of_rows(real, fake), "sqrtm (pytorch-fid)": lambda: calculate_frechet_distance(*stats)}


def kid_sides(n: int, dims: int, size: int) -> Sides:
    real, fake = rows(n, dims, 1), rows(n, dims, 2, 0.95)
    return {
        "ours": lambda: kid(real, fake, 100, size)[0],
        "torch-fidelity": lambda: kid_features_to_metric(fake, real, kid_subset_size=size, verbose=False)[
            "kernel_inception_distance_mean"
        ],
    }


def manifold_sides(n: int, dims: int) -> Sides:
    real, fake = rows(n, dims, 1), rows(n, dims, 2, 0.95)
    return {
        "ours": lambda: precision_recall(real, fake),
        "torch-fidelity full": lambda: calculate_precision_recall_full(fake, real),
        "torch-fidelity part": lambda: calculate_precision_recall_part(fake, real),
    }


def keeping(sides: Sides, values: dict[str, Any]) -> Sides:
    """The sides, each of which leaves its last value."""

    def kept(name: str, side: Callable[[], Any]) -> Callable[[], None]:
        return lambda: values.update({name: side()})

    return {name: kept(name, side) for name, side in sides.items()}


def jobs(quick: bool) -> dict[str, tuple[int, Callable[[], Sides]]]:
    """(rounds, how the sides are made) of each goal."""
    dims, part = (512, 5) if quick else (2048, 1)
    return {
        "P4_frechet": (2, lambda: frechet_sides(5000 // part, dims)),
        "P5_frechet_few_rows": (2, lambda: few_rows_sides(1000 // part, dims)),
        "P6_kid_5k": (3, lambda: kid_sides(5000 // part, dims, 1000 // part)),
        "P6_kid_10k": (2, lambda: kid_sides(10000 // part, dims, 1000 // part)),
        "P7_precision_recall_5k": (3, lambda: manifold_sides(5000 // part, dims)),
        "P7_precision_recall_10k": (2, lambda: manifold_sides(10000 // part, dims)),
    }


def main() -> None:
    ask = parser(__doc__, "512 dimensions, a fifth of the rows")
    ask.add_argument("--only", nargs="+", default=["P"], help="the goals to measure, by the beginnings of their names")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of scipy, about the peers' calls
    say = printer(asked.json)
    facts = about("torch-fidelity", "torchmetrics", "pytorch-fid", "scipy", "numpy")
    say(headline(facts))
    ratios, seconds, values = {}, {}, {}
    for goal, (rounds, make) in jobs(asked.quick).items():
        if not goal.startswith(tuple(asked.only)):
            continue
        values[goal] = {}
        seconds[goal] = medians(interleaved(keeping(make(), values[goal]), rounds, warmup=0 if rounds < 3 else 1))
        say(goal)
        for name in sorted(values[goal], key=seconds[goal].get):
            ratio = seconds[goal][name] / seconds[goal]["ours"]
            say(f"  {name:22s} {seconds[goal][name]:8.3f} s  {ratio:6.2f}x  {values[goal][name]}")
            if name != "ours":
                ratios[f"{goal}_vs_{name}"] = ratio
    finish(asked.json, ratios, seconds=seconds, values=values, about=facts)


if __name__ == "__main__":
    main()
