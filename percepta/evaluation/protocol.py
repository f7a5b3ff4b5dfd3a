"""How the numbers were made, beside the numbers; and what a reader must be warned of."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from percepta._version import __version__
from percepta.evaluation.metrics import Dialect
from percepta.evaluation.plan import Plan, Read
from percepta.evaluation.sets import ImageSet, StatsFile

PAPERS = (10_000, 50_000)  # the sample counts of published numbers


def protocol_of(
    fake: ImageSet | StatsFile, real: ImageSet | StatsFile, plan: Plan, dialect: Dialect, made: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Everything that decides the numbers. `made`: how the generated images were drawn, where that is known."""
    return {
        "generated": {**side_facts(fake), **({"drawn": dict(made)} if made else {})},
        "reference": side_facts(real),
        "dialect": asdict(dialect),
        "extractors": {
            family: {
                "weights": extractor.weights, "resize": extractor.resize, "precision": extractor.precision,
                "layers": sorted({want.layer for want in plan.wanted if want.family == family}), **extra(extractor),
            }
            for family, extractor in plan.extractors.items()
            if any(want.family == family for want in plan.wanted)
        },
        "seed": seed,
        "versions": {
            "percepta": __version__, "python": platform.python_version(), "torch": str(torch.__version__), "numpy": version("numpy"),
            "pillow": version("pillow"),
        },
    }  # fmt: skip


def extra(extractor: object) -> dict[str, Any]:
    """What a space says of itself beyond its weights: how a `domain` encoder was trained."""
    about = getattr(extractor, "about", None)
    return {"about": about} if about else {}


def side_facts(side: ImageSet | StatsFile) -> dict[str, Any]:
    if isinstance(side, StatsFile):
        return {"name": side.name, "fingerprint": side.fingerprint, "count": side.count, "statistics": True}
    return {
        "name": side.name,
        "fingerprint": side.fingerprint,
        "count": len(side),
        "transform": side.transform_text,
        **side.facts(),
    }


def warnings_of(
    fake: ImageSet | StatsFile, real: ImageSet | StatsFile, plan: Plan, dialect: Dialect, read: Sequence[Read]
) -> list[str]:
    """What a reader of these numbers has to know."""
    out: list[str] = []
    images = [side for side in (fake, real) if isinstance(side, ImageSet)]
    spaces = [w for w in plan.wanted if w.metric.reads == "moments"]
    if spaces and isinstance(fake, ImageSet) and len(fake) not in PAPERS:
        out.append(
            f"{len(fake):,} generated images: published FIDs use 50,000 (some 10,000), and a Frechet distance falls with the count; "
            "compare only numbers of equal counts"
        )
    elif spaces and isinstance(fake, ImageSet) and len(fake) == 10_000:
        out.append("10,000 generated images: do not set this beside an FID of 50,000, it is larger by its count alone")
    for side, found in zip((fake, real), read, strict=True):
        out += _too_few(side, found, plan)
    if any(w.space == "inception-768" for w in plan.wanted):
        out.append("inception-768 is not the published FID (2048 features): call it FID-768 and never set it beside a paper's")
    smallest = min((len(side) for side in images), default=0)
    if any(w.metric.name == "kid" for w in plan.wanted) and smallest < dialect.kid_size:
        out.append(
            f"KID's subsets of {dialect.kid_size} exceed a set of {smallest}: subsets of {smallest} were used, which all hold the same images of it; "
            "a smaller --kid-size tells a spread"
        )
    if isinstance(fake, ImageSet) and isinstance(real, ImageSet):
        out += between(fake, real)
    return out


def _too_few(side: ImageSet | StatsFile, read: Read, plan: Plan) -> list[str]:
    """A covariance of d features has rank d only from d + 1 images on."""
    out = []
    for want in plan.wanted:
        found = read.of(want) if want.metric.reads == "moments" else None
        count = None if found is None else found.count if isinstance(found, StatsFile) else len(found)
        if found is not None and count is not None and count <= found.dims:
            fewer = f"{count:,} images are too few for the {found.dims:,} features of {want.space}"
            out.append(f"{side.name}: {fewer}: its covariance is singular and the Frechet distance strongly biased")
    return out


def between(fake: ImageSet, real: ImageSet) -> list[str]:
    """What the two sides have in common, or have not."""
    out: list[str] = []
    same = fake.overlap(real)
    if same:
        out.append(f"{same:,} images of {fake.name} are in {real.name} as well, pixel for pixel: the splits overlap")
    shares = [side.jpeg_share for side in (fake, real)]
    if max(shares) > 0 and min(shares) == 0:
        which = fake if shares[0] else real
        out.append(f"only {which.name} is JPEG-compressed ({max(shares):.0%}): its artefacts count as a difference")
    if fake.sizes != real.sizes:
        out.append(f"sizes differ: {size_text(fake)} against {size_text(real)}; use --size to bring both to one")
    return out


def size_text(side: ImageSet) -> str:
    sizes: Sequence[tuple[int, int]] = sorted(side.sizes)
    if len(sizes) == 1:
        return f"{side.name} {sizes[0][1]} x {sizes[0][0]}"
    return f"{side.name} of {len(sizes)} sizes"
