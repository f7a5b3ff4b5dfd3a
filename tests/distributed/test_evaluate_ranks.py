"""percepta evaluate in real processes: two ranks are one to the bit, one of them tells and writes, and a signal leaves what is computed."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import free_port

SIDES = ["shapes:length=32,size=8", "shapes:length=20,size=8,seed=1"]
METRICS = ["--metrics", "fid,kid,pr,dc", "--space", "pixels", "--kid-size", "10", "--kid-subsets", "5", "--batch", "4"]
CHUNKS = """
import os, time
from percepta.evaluation import passes
from percepta.spaces.extractor import Extractor
passes.CHUNK = 4
real = Extractor.__call__
def slow(self, images, layers):
    time.sleep({pause} * (4 if os.environ.get("RANK") == "1" else 1))
    return real(self, images, layers)
Extractor.__call__ = slow
"""


WHO = """
import os
from percepta import sampling
from percepta.spaces import domain, domain_fit
sampling.Job.__init__.__kwdefaults__["batch"] = 3
domain_fit.Recipe.__init__.__defaults__ = (1, 3, *domain_fit.Recipe.__init__.__defaults__[2:])
def told(real, what):
    def call(*args, **options):
        with open({log!r}, "a") as file:
            file.write(what + " " + os.environ.get("RANK", "0") + "\\n")
        return real(*args, **options)
    return call
sampling.save_png = told(sampling.save_png, "image")
domain.fit = told(domain.fit, "encoder")
"""


def code(args, pause=0.0):
    words = [str(a) for a in args]
    return f"{CHUNKS.format(pause=pause)}\nfrom percepta.cli import main\nraise SystemExit(main({['evaluate', *words]!r}))"


def ended(processes, codes=None):
    found = [process.wait(60) for process in processes]
    assert found == (codes or [0] * len(processes)), [process.err.read_text() for process in processes]
    return [(process.out.read_text(), process.err.read_text()) for process in processes]


def rows(cache: Path) -> dict[str, bytes]:
    return {str(file.relative_to(cache)): file.read_bytes() for file in cache.rglob("*.rows")}


def test_two_ranks_judge_as_one_and_the_first_tells(zygote, tmp_path):
    """Whether they share a cache or have one each (as on two machines)."""
    (one,) = ended([zygote.start(code([*SIDES, *METRICS, "--json", "--out", tmp_path / "1"]), PERCEPTA_CACHE=str(tmp_path / "a"))])
    args = code([*SIDES, *METRICS, "--json", "--out", tmp_path / "2"])
    two = ended(zygote.ranks(2, args, free_port(), PERCEPTA_CACHE=str(tmp_path / "b")))
    alone = f"import os\nos.environ['PERCEPTA_CACHE'] = {str(tmp_path)!r} + '/own' + os.environ['RANK']\n{args}"
    apart = ended(zygote.ranks(2, alone, free_port()))
    result = json.loads(one[0])
    assert len(result["metrics"]) == 6
    for ranks in (two, apart):
        assert json.loads(ranks[0][0]) == result
        assert ranks[0][1].count("cache miss") == 2
        assert ranks[0][1].count("written: ") == 1
        assert ranks[1] == ("", "")
    for name in ("evaluation.json", "protocol.json"):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    kept = rows(tmp_path / "a")
    assert len(kept) == 8 + 5
    for cache in ("b", "own0", "own1"):
        assert rows(tmp_path / cache) == kept


def test_two_ranks_draw_together_and_train_one_domain_encoder(zygote, tiny, tmp_path):
    """The same images, in the same batches, as one process draws."""
    run = tmp_path / "run"
    ended([zygote.command(["train", "ddpm", *tiny.flags(run, steps=1, checkpoint_every=1)])])
    found, pictures = [], []
    for size in (1, 2):
        before = WHO.format(log=str(tmp_path / f"log-{size}"))
        args = [run, SIDES[1], "--num", 10, "--steps", 2, "--metrics", "fid,pr", "--space", "pixels,domain", "--json"]
        ranks = zygote.ranks(2, before + code(args), free_port(), PERCEPTA_CACHE=str(tmp_path / str(size))) if size == 2 else [
            zygote.start(before + code(args), PERCEPTA_CACHE=str(tmp_path / str(size)))
        ]  # fmt: skip
        told = ended(ranks)
        found.append(json.loads(told[0][0]))
        pictures.append({file.name: file.read_bytes() for file in run.rglob("evaluation/drawn/*/*.png")})
        for out, err in told[1:]:
            assert (out, err) == ("", "")
        assert told[0][1].count("drawing 10 images") == 1
        (run / "evaluation").rename(tmp_path / f"evaluation-{size}")
    logs = [sorted((tmp_path / f"log-{size}").read_text().splitlines()) for size in (1, 2)]
    assert logs[0] == ["encoder 0"] + ["image 0"] * 10
    assert logs[1] == ["encoder 0"] + ["image 0"] * 6 + ["image 1"] * 4
    assert len(pictures[0]) == 10
    assert pictures[0] == pictures[1]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert len(found[0]["metrics"]) == 6


def test_a_bad_image_that_one_rank_meets_ends_both(zygote, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for k in range(12):
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(images / f"{k:02d}.png")
    (images / "06.png").write_text("no image")  # in the second chunk: rank 1's
    args = code([images, SIDES[1], *METRICS, "--cache", tmp_path / "cache"])
    first, second = ended(zygote.ranks(2, args, free_port()), [1, 2])
    assert "06.png: is not an image" in second[1]
    assert "rank 0 of 2 failed in a collective: another rank stopped" in first[1]
    assert "Traceback" not in first[1] + second[1]
    assert first[0] == second[0] == ""


def test_statistics_need_no_pass_and_mistakes_are_said_by_every_rank(zygote, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(192), sigma=np.eye(192))
    args = [tmp_path / "stats.npz", SIDES[1], "--metrics", "fid", "--space", "pixels", "--cache", tmp_path / "cache", "--json"]
    first, second = ended(zygote.ranks(2, code(args), free_port()))
    assert json.loads(first[0])["metrics"]["fid"]["value"] > 0
    assert second == ("", "")
    for out, err in ended(zygote.ranks(2, code([*SIDES, "--metrics", "fdi"]), free_port()), [2, 2]):
        assert (out, len(err.splitlines())) == ("", 1)
        assert "did you mean fid?" in err


@pytest.mark.parametrize("size", [1, 2])
def test_ctrl_c_ends_with_3_and_the_same_command_goes_on(size, zygote, tmp_path):
    def start(cache, pause=0.0):
        args = code([*SIDES, *METRICS, "--json", "--cache", tmp_path / cache], pause)
        return zygote.ranks(2, args, free_port()) if size == 2 else [zygote.start(args)]

    first = start("cache", pause=0.15)  # of two, rank 0 then waits for rank 1, which is slower, and hears of the signal there
    first[0].until(lambda: len(rows(tmp_path / "cache")) >= (2 if size == 1 else 5))
    for process in first:
        process.kill(signal.SIGINT)
    for out, err in ended(first, [3] * size):
        assert out == ""
        assert err.splitlines()[-1] == "stopped; what is computed is kept, run the same command again to go on"
        assert "Traceback" not in err
    kept = len(rows(tmp_path / "cache"))
    assert 2 <= kept < 8
    second, whole = ended(start("cache")), ended(start("other"))
    assert f"cache partial hit: {SIDES[0]} in pixels (embedding): {4 * kept} of 32 images" in second[0][1]
    assert json.loads(second[0][0])["metrics"] == json.loads(whole[0][0])["metrics"]


SLOW = """
import os, signal
from percepta.spaces import domain
fit_before = domain.fit
domain.Recipe.__init__.__defaults__ = tuple(2 if v == 300 else v for v in domain.Recipe.__init__.__defaults__)

def fit(*args):
    *given, check = args

    def stopped():
        os.kill(os.getpid(), signal.SIGTERM)
        check()
        raise AssertionError("it went on")

    if os.environ["STOP"] == "1":
        assert os.environ["RANK"] == "0", "it was trained by a rank that should wait"
    return fit_before(*given, stopped if os.environ["STOP"] == "1" else check)

domain.fit = fit
"""


def test_a_signal_to_the_rank_that_trains_the_domain_encoder_sends_all_home(zygote, tmp_path):
    args = code([*SIDES, "--metrics", "fid", "--space", "domain", "--cache", tmp_path / "cache", "--json"])
    for out, err in ended(zygote.ranks(2, SLOW + args, free_port(), STOP="1"), [3, 3]):
        assert out == ""
        assert err.splitlines()[-1] == "stopped; what is computed is kept, run the same command again to go on"
        assert "Traceback" not in err
    first, second = ended(zygote.ranks(2, SLOW + args, free_port(), STOP="0"))
    assert json.loads(first[0])["metrics"]["fid"]["space"].startswith("domain")
    assert second == ("", "")


def test_a_domain_encoder_that_is_refused_is_left_out_on_all_ranks(zygote, tmp_path):
    """Of 12 images none can be trained; what needs no encoder is computed."""
    asked = ["--metrics", "fid,pr", "--space", "pixels,domain", "--cache", tmp_path / "cache", "--json"]
    args = code([SIDES[0], "shapes:length=12,size=8", *asked])
    first, second = ended(zygote.ranks(2, args, free_port()))
    found = json.loads(first[0])
    assert set(found["metrics"]) == {"fid", "precision", "recall"}
    assert "at least 16 images" in found["missing"]["fid@domain"]
    assert second == ("", "")


def test_two_ranks_sweep_as_one(zygote, tmp_path):
    """Where rank 0 alone can see what an earlier sweep left, too: all judge the same weights."""
    make = f"""
from pathlib import Path
import torch
from diffusers import UNet2DModel
from percepta.formulation import Denoiser, Formulation
from percepta.interop import export_pipeline
from percepta.networks import adapt
from percepta.path import LinearBeta
torch.manual_seed(0)
network = UNet2DModel(sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, num_class_embeds=4,
                      down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
export_pipeline(Path({str(tmp_path / "model")!r}), Denoiser(adapt(network, num_classes=3), Formulation(LinearBeta(1000), "noise")))
"""
    ended([zygote.start(make)])
    words = [tmp_path / "model", SIDES[1], "--num", 6, "--steps", 2, *METRICS, "--cache", tmp_path / "cache", "--json"]
    (one,) = ended([zygote.start(code([*words, "--guidance", "1,2", "--out", tmp_path / "1"]))])
    hidden = """
import os
from pathlib import Path
from percepta import sweeping
folder_before = sweeping.folder_of
sweeping.folder_of = lambda out, weight: folder_before(out if os.environ["RANK"] == "0" else Path("/nowhere"), weight)
"""
    for judged in (0, 1):
        args = hidden + code([*words, "--guidance", "1,2", "--out", tmp_path / "2"])
        first, second = ended(zygote.ranks(2, args, free_port()))
        assert json.loads(first[0]) == json.loads(one[0])
        assert first[1].count("judged already") == judged
        assert second == ("", "")
