"""A model judged over guidance weights: each weight is its own evaluation to the bit, what is done stays done, and what cannot be is refused at once."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from PIL import Image
from processes import small_network

from percepta import judging, sweeping
from percepta.cli import main
from percepta.formulation import FLOW, Denoiser, Formulation
from percepta.interop import export_pipeline
from percepta.networks import adapt
from percepta.path import LinearBeta
from percepta.reports import write_report
from percepta.sampling import Job

torch.set_num_threads(1)

REAL = "shapes:length=20,size=8"
JUDGE = {"metrics": ("fid", "kid"), "spaces": ("pixels",), "kid_size": 5}
WEIGHTS = (1.0, 2.0, 4.0)


def pipeline(folder, formulation=None, classes=3, rows=4, latent=False):
    """An untrained pipeline whose answer depends on the class; 8 px, or 8 px latents of 16 px images."""
    network = UNet2DModel.from_pretrained(small_network(folder.with_name(f"{folder.name}-network"), classes=rows))
    if latent:
        config = {**network.config, "in_channels": 4, "out_channels": 4}
        network = UNet2DModel.from_config(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape) * (0.02 if latent else 0.05))  # smooth enough for an adaptive solver
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16)  # fmt: skip
    meaning = formulation or Formulation(LinearBeta(1000), "noise")
    export_pipeline(folder, Denoiser(adapt(network, num_classes=classes), meaning), vae=vae if latent else None)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pipeline(tmp_path_factory.mktemp("sweeping") / "model")


def job(model, **changed):
    return Job(**{"source": model, "num": 6, "steps": 2, "batch": 4, "device": "cpu", **changed})


def swept(model, out, weights=WEIGHTS, notes=None, changed=None, **options):
    note = notes.append if notes is not None else lambda text: None
    given = {"cache": out.parent / "cache", **JUDGE, **options}
    return sweeping.sweep(model, REAL, weights, out, job(model, **(changed or {})), note=note, **given)


def values(point):
    return {name: value.value for name, value in point.metrics.items()}


def test_each_weight_is_the_evaluation_of_that_weight(model, tmp_path):
    found = swept(model, tmp_path / "out")
    assert tuple(found.points) == WEIGHTS
    for weight, point in found.points.items():
        alone = judging.evaluate(
            model, REAL, job(model, guidance=weight), samples=tmp_path / "drawn", cache=tmp_path / "own", **JUDGE
        )
        assert values(point) == values(alone)
        assert point.protocol["generated"]["drawn"]["guidance"] == weight
        assert point.protocol["reference"] == json.loads(json.dumps(alone.protocol["reference"]))
        kept = json.loads((sweeping.folder_of(tmp_path / "out", weight) / "evaluation.json").read_text())
        assert kept == point.to_json()
    assert len({point["fid"] for point in found.points.values()}) == 3, "guidance changes what is drawn"


def test_the_reference_is_read_once(model, tmp_path):
    notes = []
    swept(model, tmp_path / "out", notes=notes)
    assert len([n for n in notes if n.startswith("cache miss") and "shapes" in n]) == 1, notes
    assert len([n for n in notes if n.startswith("cache hit") and "shapes" in n]) == 2, notes


def test_a_sweep_goes_on_where_it_was_stopped(model, tmp_path):
    whole = swept(model, tmp_path / "whole")

    def check():
        if (sweeping.folder_of(tmp_path / "out", 2.0) / "evaluation.json").is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(model, tmp_path / "out", check=check)
    assert {file.parent.name for file in (tmp_path / "out").glob("*/evaluation.json")} == {"guidance-1", "guidance-2"}
    judged, real = [], sweeping.evaluate

    def evaluate(source, reference, asked, **options):
        judged.append(asked.guidance)
        return real(source, reference, asked, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "evaluate", evaluate)
        found = swept(model, tmp_path / "out")
        assert judged == [1.0, 4.0]
        judged.clear()
        assert swept(model, tmp_path / "out", (*WEIGHTS, 8.0)).to_json()["sweep"][:3] == found.to_json()["sweep"]
        assert judged == [1.0, 8.0]
        judged.clear()
        swept(model, tmp_path / "out", keep=False)
        assert judged == list(WEIGHTS)
    assert {w: values(p) for w, p in found.points.items()} == {w: values(p) for w, p in whole.points.items()}


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"seed": 1}, {}),
        ({"steps": 3}, {}),
        ({"num": 7}, {}),
        ({}, {"metrics": ("fid",)}),
        ({}, {"kid_size": 4}),
        ({}, {"size": 6}),
    ],
)
def test_another_sweep_takes_nothing_of_the_one_before(changed, options, model, tmp_path):
    """Each of these decides the numbers, or which there are."""
    swept(model, tmp_path / "out", (1.0, 2.0))
    notes = []
    found = swept(model, tmp_path / "out", (1.0, 2.0), notes, changed, **options)
    fresh = swept(model, tmp_path / "fresh", (1.0, 2.0), None, changed, **options)
    assert not [n for n in notes if "judged already" in n]
    assert {w: values(p) for w, p in found.points.items()} == {w: values(p) for w, p in fresh.points.items()}


def test_a_damaged_evaluation_is_made_again(model, tmp_path):
    first = swept(model, tmp_path / "out", (1.0, 2.0, 4.0))
    for weight, text in ((2.0, '{"metrics": {'), (4.0, '{"metrics": {"fid": 3}, "protocol": {}, "warnings": [], "missing": {}}')):
        (sweeping.folder_of(tmp_path / "out", weight) / "evaluation.json").write_text(text)
    assert swept(model, tmp_path / "out", (1.0, 2.0, 4.0)) == first


# ---- refused before anything is drawn


def test_a_model_that_cannot_be_guided_is_refused_before_anything_is_drawn(tmp_path):
    plain = pipeline(tmp_path / "plain", classes=None, rows=None)
    tableless = pipeline(tmp_path / "tableless", classes=3, rows=3)
    for folder, said in ((plain, "needs a class-conditional model"), (tableless, "has no null label")):
        with pytest.raises(ValueError, match=said):
            swept(folder, tmp_path / "out")
        assert not (folder / "evaluation").exists()
    assert tuple(swept(plain, tmp_path / "out", (1.0,)).points) == (1.0,)
    with pytest.raises(ValueError, match="draws from a model"):
        swept(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="did you mean fid"):
        swept(tableless, tmp_path / "out", metrics=("fdi",))


# ---- the command


def evaluate(capsys, *words):
    capsys.readouterr()
    code = main(["evaluate", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_prints_a_table_and_leaves_a_sweep_with_its_plot(model, tmp_path, capsys):
    out = tmp_path / "run" / "evaluation"
    args = [model, REAL, "--num", 6, "--steps", 2, "--metrics", "fid,pr", "--space", "pixels", "--out", out]
    code, text, err = evaluate(capsys, *args, "--guidance", "1:3:1", "--cache", tmp_path / "cache")
    assert code == 0, err
    rows = [line.split()[0] for line in text.splitlines() if line[:8].strip() in ("1", "2", "3")]
    assert rows == ["1", "2", "3"]
    assert "* the best of its metric" in text
    code, text, err = evaluate(capsys, *args, "--guidance", "1,2,3", "--cache", tmp_path / "cache", "--json")
    assert code == 0, err
    assert err.count("judged already") == 2
    record = json.loads(text)
    assert [row["guidance"] for row in record["sweep"]] == [1.0, 2.0, 3.0]
    assert set(record["best"]) <= {"fid", "precision", "recall"}
    assert record["protocol"]["reference"]["name"] == REAL
    assert json.loads((out / "sweep.json").read_text()) == record
    with Image.open(out / "figures" / "sweep.png") as plot:
        assert plot.width > 300
    words = json.loads((out / "figures" / "sweep.json").read_text())
    assert words["title"] == "Guidance sweep"
    code, text, _ = evaluate(capsys, *args, "--guidance", "2", "--cache", tmp_path / "cache", "--json")
    assert code == 0
    assert json.loads(text)["metrics"] == record["sweep"][1]["metrics"]
    (tmp_path / "run" / "config.json").write_text('{"recipe": "ddpm"}')
    page = write_report([tmp_path / "run"], tmp_path / "report.html").out.read_text()
    assert "<h3>Guidance sweep</h3>" in page
    assert f'alt="{words["alt"]}"' in page
    assert page.count('<span class="mark">best</span>') >= len(record["best"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{model} {real} --guidance 1:4", "has 2 parts"),
        ("{model} {real} --guidance 1,two", "'two' is not a guidance weight"),
        ("{model} {real} --guidance high", "'high' is not a guidance weight"),
        ("{model} {real} --guidance 1:200:1", "names 200 weights, up to 100"),
        ("{model} {real} --guidance 1,2 --neighbours 2", "--neighbours looks at the images of one weight"),
        ("{images} {real} --guidance 1,2", "images is no run and no pipeline folder"),
        ("shapes:length=9,size=8 {real} --guidance 1,2", "is no run and no pipeline folder"),
        ("{images} {real} --guidance 2", "--guidance says how a model draws"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(words, said, model, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "0.png")
    code, out, err = evaluate(capsys, *words.format(model=model, real=REAL, images=images).split())
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1), err
    assert said in err


SAMPLERS = ["ddim --steps 4", "ddim --steps 6 --eta 1", "euler --steps 4", "heun --steps 3", "rk4 --steps 2", "adaptive --steps 1"]


def test_every_sampler_of_the_comparison_draws_from_a_flow_in_latents_with_guidance(tmp_path, capsys, monkeypatch):
    """DDIM, and the flow's ODE by Euler, Heun, RK4 and adaptively: by sample, and the same images by evaluate."""
    model = pipeline(tmp_path / "flow", FLOW, latent=True)
    seen = set()
    for number, words in enumerate(SAMPLERS):
        out = tmp_path / str(number)
        assert main(["sample", str(model), "--num", "3", "--guidance", "2", "--sampler", *words.split(), "--out", str(out)]) == 0
        pictures = [file.read_bytes() for file in sorted(out.glob("*.png"))]
        assert len(pictures) == 3
        with Image.open(out / "000000.png") as image:
            assert image.size == (16, 16)
        seen.add(pictures[0])
        if words.startswith("adaptive") or "--eta" in words:  # slow, and no flag of evaluate
            continue
        code, told, err = evaluate(
            capsys, model, "shapes:length=9,size=16", "--num", 3, "--guidance", 2, "--sampler", *words.split(), "--space", "pixels",
            "--metrics", "kid", "--kid-size", 3, "--cache", tmp_path / "cache", "--json",
        )  # fmt: skip
        assert code == 0, err
        drawn = Path(json.loads(told)["protocol"]["generated"]["name"])
        assert [file.read_bytes() for file in sorted(drawn.glob("*.png"))] == pictures, words
    assert len(seen) >= 5
