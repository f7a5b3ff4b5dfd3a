"""LPL, figure 13: outliers in the decoder's feature maps, which its mask drops."""

from percepta.studies._common import DATA
from percepta.studies._probes import ROWS, SIZES, autoencoders, facts, probe, reading
from percepta.studies.engine.study import At, Column, Figure, Study

LAYERS = 4  # the first ones: ae-pocket has four, TAEF2 too


def figures(at: At) -> list[Figure]:
    text = "A row per layer, the mid block first: maps with most outliers, each as it is and with what the mask drops in orange."
    return [Figure(name, text, probe(at, vae, "outliers"), "figures/outliers.png") for name, vae in autoencoders(at)]


STUDY = Study(
    name="lpl-fig13",
    summary="LPL, figure 13: outliers in feature maps of the decoder",
    ask="How much of each layer does the mask of algorithm 1 drop, and how far are the greatest values from the rest of their map?",
    printed="maps of two channels of the third up block (l = 4) of sdxl-vae, each with a few bright patches; no number is printed.",
    rows=ROWS,
    columns=tuple(
        Column(label, f"layer-{k}.{place}", better="", group=f"layer {k}")
        for k in range(LAYERS)
        for label, place in (
            ("places dropped", "dropped"), ("channels with any", "channels_hit"), ("peak, median", "peak_median"), ("peak, greatest", "peak_most"),
        )
    ),
    judge=reading("outliers"),
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)  # fmt: skip
