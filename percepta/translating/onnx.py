"""A trained generator as an ONNX file, one for each direction: translations where there is no torch.

    image [batch, 3, height, width]     RGB in [-1, 1], float32; sides are multiples of 4 from 16 px; a full U-GAT-IT has its one size
    style [batch, dims]                 where a model has styles (MUNIT): the JSON beside the file holds the one of seed 0
    translation                         like the image

The batch is free, and so are the sides. Beside a2b.onnx lies a2b.json with all that its user has to know. What was written is run by onnxruntime, where that is
here, and compared with the network in torch. Spectral norm is in the critics alone, which are not exported.
"""

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta._version import __version__
from percepta.interop.export import replace_folder
from percepta.networks.loading import load_model
from percepta.networks.translation import DIRECTIONS, Direction, Pair
from percepta.sampling import weights_hash
from percepta.training.config import read_config
from percepta.training.recipe import Recipe
from percepta.training.reopen import export_run
from percepta.translating.fitting import LEAST
from percepta.translating.pipeline import TranslationPipeline, recipe_of

OPSET = 18  # from 2022: what torch's exporter writes without converting
TOLERANCE = 1e-3  # of the largest difference, in [-1, 1]: an eighth of the step between two of 256 levels
NEEDED, CHECKER = ("onnx", "onnxscript"), "onnxruntime"


@runtime_checkable
class Styled(Protocol):
    """A pair whose translations have a style."""

    def style_of(self, seed: int) -> Tensor: ...

    def restyle(self, x: Tensor, direction: Direction, style: Tensor) -> Tensor: ...


class OneWay(nn.Module):
    """A pair in one direction, with inputs by their names in the file."""

    def __init__(self, pair: Pair, direction: Direction) -> None:
        super().__init__()
        self.pair = pair
        self.direction: Direction = direction

    def forward(self, image: Float[Tensor, "b 3 h w"], style: Float[Tensor, "b s"] | None = None) -> Float[Tensor, "b 3 h w"]:
        if style is None:
            return self.pair.translate(image, self.direction)
        assert isinstance(self.pair, Styled)
        return self.pair.restyle(image, self.direction, style)

    def inputs(self, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """Some, of this size, the same each time."""
        rng = torch.Generator().manual_seed(0)
        given = {"image": torch.rand(batch, 3, height, width, generator=rng) * 2 - 1}
        if isinstance(self.pair, Styled):
            given["style"] = torch.randn(batch, self.pair.style_of(0).shape[1], generator=rng)
        return given


def pair_of(
    recipes: Mapping[str, type[Recipe]],
    folder: Path,
    step: int | None = None,
    raw: bool = False,
    ema_length: float | None = None,
) -> tuple[TranslationPipeline, dict[str, Any]]:
    """The translator of a run's checkpoint, or of a model folder, and where it is from."""
    if recipe_of(folder) is None:
        if step is not None or raw or ema_length is not None:
            raise ValueError(f"{folder} is no run: --step, --raw and --ema-length choose among the weights of one")
        return TranslationPipeline.from_pretrained(folder), {}
    recipe, settings = read_config(folder, recipes)
    if recipe.translates is None:
        raise ValueError(f"{folder} draws images and does not translate any: --onnx takes a run of the recipe ladiffgan")
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        step = export_run(recipes, folder, model, step, raw, ema_length)
        pair = load_model(model)
    assert isinstance(pair, Pair)
    return TranslationPipeline(pair, settings.size), {"recipe": recipe.name, "step": step}


def write_onnx(
    pipe: TranslationPipeline, out: Path, directions: Sequence[Direction] = DIRECTIONS, about: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Fill the folder `out`, in one piece; what the JSON files hold, `about` among it. A file that does not compute what the network does is not kept."""
    missing = [name for name in NEEDED if not _version(name)]
    if missing:
        raise ValueError(f"ONNX files are written by {' and '.join(missing)}, not installed here: pip install 'percepta[onnx]'")
    own = {f"{direction}.{kind}" for direction in DIRECTIONS for kind in ("onnx", "json", "onnx.data")}
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= own):
        raise ValueError(f"{out} exists and is no earlier export as ONNX; give a new folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        records = [_write(pipe, work, direction, about or {}) for direction in directions]
        for kept in [
            path for path in out.glob("*") if path.name.partition(".")[0] not in directions
        ]:  # of an earlier export of the other direction
            shutil.copy2(kept, work)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return records


def _write(pipe: TranslationPipeline, folder: Path, direction: Direction, about: Mapping[str, Any]) -> dict[str, Any]:
    pair, file = pipe.pair, folder / f"{direction}.onnx"
    way = OneWay(copy.deepcopy(pair), direction).cpu().float().eval()
    side: dict[str, Any] = {"multiple": pair.multiple, "least": LEAST}
    record: dict[str, Any] = {
        "file": file.name, "opset": OPSET, "direction": direction, "model": type(pair).__name__, "weights": weights_hash(pair), **about,
        "size": pipe.size, "sides": "only size" if pipe.fixed else side, "layout": "NCHW", "channels": "RGB", "range": [-1, 1], "dtype": "float32",
        "inputs": list(way.inputs(1, LEAST, LEAST)), "outputs": ["translation"],
    }  # fmt: skip
    if isinstance(pair, Styled):
        style = pair.style_of(0)
        record["style"] = {"dims": style.shape[1], "drawn_from": "N(0, 1)", "of_seed_0": style[0].tolist()}
    program = _program(way, pipe)
    program.model.metadata_props.update({"percepta": __version__, "record": json.dumps(record)})
    program.save(file)
    with file.open("rb") as opened:
        record["sha256"] = hashlib.file_digest(opened, "sha256").hexdigest()
    record |= {"percepta": __version__, "checked": _checked(file, way, pipe)}
    file.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _program(way: OneWay, pipe: TranslationPipeline) -> Any:
    """Traced by torch.export: it knows which sizes are free, where the older exporter takes those of the example for granted."""
    free, step = torch.export.Dim, way.pair.multiple
    axes: dict[int, Any] = {0: free("batch", min=1)}
    names = {0: "batch"}
    if not pipe.fixed:
        axes |= {axis: step * free(name, min=LEAST // step) for axis, name in ((2, "rows"), (3, "columns"))}
        names |= {2: "height", 3: "width"}
    height, width = (pipe.size, pipe.size) if pipe.fixed and pipe.size else (2 * LEAST, 3 * LEAST)
    given = way.inputs(2, height, width)  # a batch or side of 1 would be taken for a constant
    shapes = {"image": axes, "style": {0: axes[0]}}
    with _quiet(), torch.no_grad():
        exported = torch.export.export(way, (), kwargs=given, dynamic_shapes={name: shapes[name] for name in given})
        program = torch.onnx.export(exported, (), opset_version=OPSET, dynamo=True, input_names=list(given), output_names=["translation"], verbose=False)  # fmt: skip
    assert program is not None
    _tidied(program.model, names)
    return program


def _tidied(model: Any, names: Mapping[int, str]) -> None:
    """Axes by name, and no traces of the code and the paths of the machine that it was written on."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        kept = names if value.name != "style" else {0: names[0]}
        for axis, name in kept.items():
            value.shape[axis] = name
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # in other names for the same axes; whoever runs the file works them out
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _checked(file: Path, way: OneWay, pipe: TranslationPipeline) -> dict[str, Any] | str:
    """The largest difference to torch, over two sizes and batches; ValueError beyond the tolerance."""
    if not _version(CHECKER):
        return f"no: {CHECKER} is not installed"
    side = pipe.size or 2 * LEAST
    other = (side, side) if pipe.fixed else (LEAST + way.pair.multiple, LEAST + 2 * way.pair.multiple)
    far = max(difference(file, way, way.inputs(*shape)) for shape in ((1, side, side), (2, *other)))
    if not far <= TOLERANCE:  # also where it is not a number
        raise ValueError(
            f"{CHECKER} {_version(CHECKER)} makes of {file.name} what differs from torch {torch.__version__} by {far:.2g} in [-1, 1], and {TOLERANCE:g} is "
            "allowed: nothing was kept; another version of either may do, or is the model not trained to the end?"
        )
    return {"by": f"{CHECKER} {_version(CHECKER)}", "largest_difference": far, "tolerance": TOLERANCE}


@torch.no_grad()
def difference(file: Path, way: OneWay, given: Mapping[str, Tensor]) -> float:
    """The largest one between the file's translation and the network's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    return float((torch.from_numpy(found) - way(**given)).abs().max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on what it does not simplify."""
    log = logging.getLogger("onnxscript")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
