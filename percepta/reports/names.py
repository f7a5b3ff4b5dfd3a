"""Metrics in words: what a reader calls them, what they say, which way is better, and of which direction of a translator they are."""

HIGHER = ("is", "precision", "recall", "density", "coverage", "lpips-diversity", "psnr", "shape-accuracy", "colour-accuracy")
LOWER = ("fid", "sfid", "kid", "cmmd", "clip-fd", "fd-dinov2", "cycle-error", "lpips-to-truth")
WAYS = {"a2b": "A → B", "b2a": "B → A"}  # of a translator's metrics: fid/a2b
NAMES = {
    "fid": "FID", "sfid": "sFID", "is": "Inception Score", "kid": "KID", "precision": "Precision", "recall": "Recall",
    "density": "Density", "coverage": "Coverage", "clip-fd": "CLIP-FD", "fd-dinov2": "FD-DINOv2", "cmmd": "CMMD",
    "lpips-diversity": "LPIPS diversity", "lpips-to-source": "LPIPS to source", "lpips-to-truth": "LPIPS to truth", "psnr": "PSNR",
    "cycle-error": "Cycle error", "shape-accuracy": "Shape right", "colour-accuracy": "Colour right",
}  # fmt: skip
MOVABLE = ("fid", "kid", "precision", "recall", "density", "coverage")  # those that follow --space
ABOUT = {
    "fid": "how far the features of both sets lie apart, as two Gaussians: means and covariances together. In squared units of the features; 0 is equal",
    "sfid": "the same on features that still know where in the image they are: whether things stand in the right place",
    "is": "whether each image is clearly of one class, and all classes occur. It never sees real images",
    "kid": "how far the features lie apart without taking them for Gaussian; its mean does not depend on the number of images. The spread is that over subsets",
    "precision": "the share of generated images that lie among the real ones: do they look right? From 0 to 1",
    "recall": "the share of real images that lie among the generated ones: does the model make all kinds? From 0 to 1",
    "density": "as precision, but an outlier among the real images counts little; may exceed 1",
    "coverage": "the share of real images that have a generated one near them. From 0 to 1",
    "clip-fd": "a Frechet distance in what CLIP sees: meaning more than texture",
    "fd-dinov2": "a Frechet distance in what DINOv2 sees, which agrees best with people's judgement",
    "cmmd": "a distance in what CLIP sees that takes nothing for Gaussian",
    "lpips-diversity": "how different pairs of generated images look; the real set's own value is what it should be near, noise has more",
    "lpips-to-source": "how much a translation differs from the image that it was made of. What must change changes it too: neither end is the best",
    "cycle-error": "how far an image is from itself after both generators: the mean difference of pixels in [-1, 1]",
    "psnr": "how near a translation is to the true image of the other domain, pixel by pixel, in decibel",
    "lpips-to-truth": "how far a translation is from the true image of the other domain, as eyes see it",
    "shape-accuracy": "the share of translations that show the shape of their source. From 0 to 1",
    "colour-accuracy": "the share of translations that show the colour of their source. From 0 to 1",
}  # fmt: skip


def parts(metric: str) -> tuple[str, str, str]:
    """(name, space, direction): `kid@domain/a2b` is KID in the space domain, of translations A to B. What is not said is empty."""
    bare, _, way = metric.rpartition("/")
    if not bare or way not in WAYS:
        bare, way = metric, ""
    base, _, space = bare.partition("@")
    return base, space, way


def direction(metric: str) -> str:
    """lower, higher, or nothing where it is not known which is better. `kid@SPACE` is as good as `kid`."""
    name = parts(metric)[0]
    return "higher" if name in HIGHER else "lower" if name in LOWER else ""


def hundredfold(metric: str) -> bool:
    """KID of translations is told as papers on them print it: times 100."""
    base, _, way = parts(metric)
    return base == "kid" and bool(way)


def spoken(metric: str, space: str = "") -> str:
    """A metric's name for readers: `kid@dinov2` is KID in dinov2. FID is said only of Inception's features, and which where not 2048."""
    base, other, way = parts(metric)
    where = f" in {other or space}" if other or space not in ("", "inception-2048") else ""
    there = f", {WAYS[way]}" if way else ""
    if base == "fid" and where:
        layer = (other or space).removeprefix("inception-")
        return (f"FID-{layer}" if layer.isdigit() else f"Frechet distance{where}") + there
    return NAMES.get(base, base) + (" × 100" if hundredfold(metric) else "") + (where if base in MOVABLE else "") + there
