"""Generators as ONNX files: what onnxruntime makes of them is what torch makes, at other sizes and batches than they were traced at."""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import percepta.translating.onnx as module
from percepta import TranslationPipeline
from percepta.cli import main
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.munit import MunitPair
from percepta.networks.ugatit import UgatitPair
from percepta.networks.unit import UnitPair
from percepta.recipes import recipes
from percepta.recipes.ladiffgan import TrainLadiffgan
from percepta.sampling import weights_hash
from percepta.translating.onnx import OneWay, difference, pair_of, write_onnx

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]
MAKE = {
    "ugatit": lambda: UgatitPair(sample_size=32, channels=4, blocks=1),
    "munit": lambda: MunitPair(channels=4, blocks=1, style_dim=3, hidden=8),
    "full": lambda: UgatitPair(sample_size=16, channels=4, blocks=1, light=False),
    "cyclegan": lambda: CycleganPair(sample_size=32, channels=4, blocks=1),
    "unit": lambda: UnitPair(channels=4, blocks=1),
}
SLOW = ("full", "cyclegan", "unit")  # cyclegan is in the run below


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(kind):
    """With nothing at its first value, where a part could be left out unseen."""
    torch.manual_seed(0)
    made = MAKE[kind]()
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(torch.rand_like(p)) if name.endswith("rho") else p.add_(0.1 * torch.randn_like(p))
    return made.eval()


def pipeline(kind):
    return TranslationPipeline(pair(kind), None if kind in ("ugatit", "full", "cyclegan") else 32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A pipeline, its b2a.onnx and the record of it, by kind: written once."""

    @cache
    def by_kind(kind):
        pipe, out = pipeline(kind), tmp_path_factory.mktemp(kind) / "out"
        (record,) = write_onnx(pipe, out, ["b2a"])
        return pipe, out / "b2a.onnx", record

    return by_kind


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in MAKE])
def test_the_file_is_the_network(kind, written):
    import onnx

    pipe, file, record = written(kind)
    way = OneWay(pipe.pair, "b2a")
    assert sorted(path.name for path in file.parent.iterdir()) == ["b2a.json", "b2a.onnx"]
    free = [(1, 16, 16), (3, 32, 32), (2, 20, 48), (1, 64, 36)]
    for shape in [(1, 16, 16), (3, 16, 16)] if kind == "full" else free:
        assert difference(file, way, way.inputs(*shape)) < 2e-5
        assert float(way(**way.inputs(*shape)).std()) > 0.05
    assert difference(file, OneWay(pipe.pair, "a2b"), way.inputs(2, 16, 16)) > 0.05
    session = onnxruntime.InferenceSession(file)
    sides = [16, 16] if kind == "full" else ["height", "width"]
    assert [(put.name, put.shape) for put in (*session.get_inputs(), *session.get_outputs())] == [
        ("image", ["batch", 3, *sides]), *([("style", ["batch", 3])] if kind == "munit" else []), ("translation", ["batch", 3, *sides]),
    ]  # fmt: skip
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert [(one.domain, one.version) for one in onnx.load(file).opset_import] == [("", record["opset"])]
    weights = sum(int(np.prod(one.dims)) for one in onnx.load(file).graph.initializer)
    assert weights < 0.7 * sum(p.numel() for p in pipe.pair.parameters())  # of one direction
    assert (record["sides"] == "only size") == (kind == "full") and record["size"] == pipe.size
    for told in (b"stack_trace", str(ROOT).encode(), b".py"):
        assert told not in file.read_bytes()


def test_the_style_of_a_seed_is_an_input(written):
    pipe, file, _ = written("munit")
    style = json.loads(file.with_suffix(".json").read_text())["style"]
    session = onnxruntime.InferenceSession(file)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    given = np.repeat(np.array([style["of_seed_0"]], np.float32), 2, 0)
    (found,) = session.run(None, {"image": image.numpy(), "style": given})
    assert given.shape == (2, style["dims"]) and np.abs(found - pipe.pair.translate(image, "b2a", 0).numpy()).max() < 2e-5
    assert np.abs(found - pipe.pair.translate(image, "b2a", 1).numpy()).max() > 0.01


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a checkpoint of each of its two steps."""
    root = tmp_path_factory.mktemp("trained")
    line = (
        "train ladiffgan --source shapes:length=2 --size 16 --steps 2 --batch 1 --generator cyclegan --channels 4 --blocks 1 --latent-gan none "
        f"--denoising none --sample-every 0 --checkpoint-every 1 --device cpu --out {root / 'run'}"
    )
    assert main(line.split()) == 0
    return root / "run"


def test_from_the_command_line_to_the_picture_that_percepta_translate_makes(trained, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "onnx"
    assert main(["export", str(trained), str(out), "--onnx", "--direction", "b2a", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (record,) = told["files"]
    assert record == json.loads((out / "b2a.json").read_text())
    assert (told["recipe"], told["step"], record["size"], record["direction"]) == ("ladiffgan", 2, 16, "b2a")
    assert record["weights"] == weights_hash(TranslationPipeline.from_pretrained(trained).pair)
    assert record["sha256"] == hashlib.sha256((out / "b2a.onnx").read_bytes()).hexdigest()
    assert record["checked"]["largest_difference"] < record["checked"]["tolerance"] and "onnxruntime" in record["checked"]["by"]

    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)  # as large as translate makes it itself
    Image.fromarray(pixels).save(tmp_path / "in.png")
    assert main(["translate", str(trained), str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--direction", "b2a"]) == 0
    image = (pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    (found,) = onnxruntime.InferenceSession(out / "b2a.onnx").run(None, {"image": image})
    mine = ((found[0].clip(-1, 1) + 1) * 127.5).round().astype(int).transpose(1, 2, 0)
    assert np.abs(mine - np.asarray(Image.open(tmp_path / "out.png")).astype(int)).max() <= 1


def test_a_checkpoint_a_model_folder_and_no_other_run(trained, tmp_path):
    last, first = (pair_of(recipes(), trained, step) for step in (None, 1))
    assert last[1] == {"recipe": "ladiffgan", "step": 2} and first[1]["step"] == 1 and last[0].size == 16
    assert weights_hash(last[0].pair) != weights_hash(first[0].pair)
    model, about = pair_of(recipes(), trained / "model")
    assert about == {} and weights_hash(model.pair) == weights_hash(last[0].pair) and model.size == 16
    with pytest.raises(ValueError, match="is no run: --step"):
        pair_of(recipes(), trained / "model", step=1)
    config = json.loads((trained / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "recipe": "ddpm", "knobs": {}}))
    with pytest.raises(ValueError, match="does not translate any"):
        pair_of(recipes(), tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """An exporter that takes no time: for what is around it."""

    class Program:
        def __init__(self):
            self.model = type("Model", (), {"metadata_props": {}})()

        def save(self, file):
            file.write_bytes(b"a network")

    monkeypatch.setattr(module, "_program", lambda way, pipe: Program())
    monkeypatch.setattr(module, "difference", lambda *_: 0.0)


@pytest.mark.parametrize("far", [0.1, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(quick, far, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(module, "difference", lambda file, way, given: seen.append(tuple(given["image"].shape)) or far)
    with pytest.raises(ValueError, match="differs from torch"):
        write_onnx(pipeline("cyclegan"), tmp_path / "out")
    assert not list(tmp_path.iterdir()) and len(set(seen)) == 2


def test_both_directions_again_and_nothing_else_is_overwritten(quick, tmp_path):
    pipe = pipeline("cyclegan")
    for _ in range(2):
        assert [record["direction"] for record in write_onnx(pipe, tmp_path / "out", about={"step": 7})] == ["a2b", "b2a"]
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert json.loads((tmp_path / "out" / "a2b.json").read_text())["step"] == 7
    (tmp_path / "out" / "mine.json").write_text("{}")
    with pytest.raises(ValueError, match="no earlier export"):
        write_onnx(pipe, tmp_path / "out")
    assert (tmp_path / "out" / "mine.json").is_file() and len(list(tmp_path.iterdir())) == 1
    assert next(pipe.pair.parameters()).device.type == "cpu" and pipe.pair.dtype == torch.float32


def test_without_the_packages(quick, monkeypatch, tmp_path):
    known = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name == "onnxruntime" else known(name))
    (record,) = write_onnx(pipeline("cyclegan"), tmp_path / "out", ["a2b"])
    assert record["checked"] == "no: onnxruntime is not installed"
    monkeypatch.setattr(module, "_version", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'percepta\[onnx\]'"):
        write_onnx(pipeline("cyclegan"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_told_without_json(trained, quick, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "out"), "--onnx"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and "a2b.onnx: CycleganPair, opset 18, checked" in told[0] and "b2a.onnx" in told[1]


@pytest.mark.parametrize(("flags", "said"), [("--direction a2b", "--onnx"), ("--onnx --adapter", "one of them")])
def test_flags_that_belong_to_others(flags, said, trained, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "out"), *flags.split()]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_recipe_still_has_the_generators_that_are_tested_here():
    kinds = {type(TrainLadiffgan(generator=kind)._pair(32)) for kind in ("ugatit", "cyclegan", "unit", "munit")}  # pyright: ignore
    assert {type(make()) for make in MAKE.values()} == kinds


def test_a_direction_that_is_not_asked_for_stays(tmp_path, monkeypatch):
    def written(pipe, folder, direction, about):
        (folder / f"{direction}.onnx").write_text(f"{direction}, {about['k']}")
        return {}

    monkeypatch.setattr(module, "_write", written)
    pipe = TranslationPipeline(MAKE["cyclegan"]())
    for k, direction in enumerate(("a2b", "b2a", "a2b")):
        write_onnx(pipe, tmp_path / "out", [direction], {"k": k})
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"a2b.onnx": "a2b, 2", "b2a.onnx": "b2a, 1"}
