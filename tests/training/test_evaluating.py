"""Evaluation while a run trains: same weights with it and without, once per step whatever interrupts it, and refused at the start."""

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from processes import FLAGS, Tiny, digest, free_port, lines, names, small_network

from percepta.images import to_uint8
from percepta.recipes import recipes
from percepta.training import checkpoint, evaluating, product
from percepta.training.data import Data
from percepta.training.evaluating import Evaluator
from percepta.training.folder import RunFolder
from percepta.training.job import build_method, train
from percepta.training.settings import Settings

RECIPES = recipes()
DDPM = RECIPES["ddpm"]()
CPU = torch.device("cpu")
EVAL = {"eval_every": 2, "eval_num": 5, "eval_metrics": "fid", "checkpoint_every": 3}


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "network": tiny.network, "out": out, **changed})


@dataclass
class Found:
    value: float
    images: str

    def to_json(self):
        value = {"value": self.value, "std": 0.25, "space": "pixels"}
        return {"metrics": {"fid": value}, "protocol": {"images": self.images}, "warnings": [], "missing": {}}


@dataclass
class Judge:
    """In the place of `evaluate`: draws random numbers, counts its calls, and may be stopped in one of them."""

    stops: int | None = None
    values: dict[int, float] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    flag: object = None

    def __call__(self, made, real, *, drawn, check, **options):
        torch.randn(7)
        torch.manual_seed(12345)
        self.calls.append(drawn["step"])
        if len(self.calls) == self.stops:
            self.check(check)
        check()
        return Found(self.values.get(drawn["step"], float(made.mean())), str(made.sum()))

    def check(self, check):
        check.__self__.asked = "SIGTERM"


@pytest.fixture
def judged(monkeypatch):
    """Runs are judged by what is given here."""

    def use(judge):
        def prepared(product, settings, device, trained, note, check):
            return Evaluator(product, settings, device, None, judge, ("fid",), ("pixels",), tuple(trained), {"fid": True})

        monkeypatch.setattr(evaluating, "prepared", prepared)
        return judge

    return use


def records(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_a_run_has_the_same_bits_with_it_and_without(dropping, tmp_path, judged):
    judge = judged(Judge())
    with_ = train(DDPM, settings(dropping, tmp_path / "with", **EVAL), quiet=True).folder
    without = train(DDPM, settings(dropping, tmp_path / "without", checkpoint_every=3), quiet=True).folder
    assert judge.calls == [2, 4, 6]
    other = digest(without)
    extra = {f"evaluation/step-{k:07d}.json" for k in (2, 4, 6)} | {"evaluations.jsonl"}
    assert {k for k in digest(with_) if k not in other} == extra
    assert {k: v for k, v in digest(with_).items() if k not in extra} == other
    assert len([k for k in other if k.endswith(".safetensors")]) >= 6


def test_torchs_generator_gradients_and_modes_are_as_they_were(dropping, tmp_path, judged, monkeypatch):
    seen = []
    real = evaluating.Evaluator.__call__

    def watched(self, step, images, check):
        model = self.product.denoiser
        before = torch.get_rng_state(), [m.training for m in model.modules()], [p.detach().clone() for p in model.parameters()]
        out = real(self, step, images, check)
        after = torch.get_rng_state(), [m.training for m in model.modules()], [p.detach().clone() for p in model.parameters()]
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert all(before[1])
        assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
        assert all(p.grad is None for p in model.parameters())
        seen.append(step)
        return out

    judged(Judge())
    monkeypatch.setattr(evaluating.Evaluator, "__call__", watched)
    train(DDPM, settings(dropping, tmp_path / "run", **EVAL), quiet=True)
    assert seen == [2, 4, 6]


def test_a_line_and_a_file_for_each_and_one_at_the_end(tiny, tmp_path, judged):
    judge = judged(Judge())
    run = train(DDPM, settings(tiny, tmp_path / "run", **{**EVAL, "eval_every": 4}), quiet=True).folder
    assert judge.calls == [4, 6]
    assert [(line["step"], line["images"]) for line in records(run)] == [(4, 16), (6, 24)]
    for line in records(run):
        assert set(line) == {"step", "images", "metrics", "protocol", "warnings"}
        file = json.loads((run / "evaluation" / f"step-{line['step']:07d}.json").read_text())
        assert {k: file[k] for k in line} == line
        assert line["metrics"]["fid"]["space"] == "pixels"
    assert lines(run)[-1].keys() == lines(run)[0].keys()


def test_a_tracker_gets_the_values_and_the_console_a_line(tiny, tmp_path, judged, monkeypatch, capsys):
    got = []

    class Tracker:
        def log(self, step, values):
            got.append((step, dict(values)))

        def close(self): ...

    judged(Judge(values={2: 1.5, 4: 2.5, 6: 3.5}))
    monkeypatch.setattr("percepta.training.job.make_trackers", lambda *_: [Tracker()])
    train(DDPM, settings(tiny, tmp_path / "run", **EVAL))
    assert [(k, v) for k, v in got if "eval/fid" in v] == [(2, {"eval/fid": 1.5}), (4, {"eval/fid": 2.5}), (6, {"eval/fid": 3.5})]
    assert "step 4: fid 2.5 +- 0.25 " in capsys.readouterr().err


def test_what_was_trained_against_is_marked_on_the_console():
    record = {"step": 3, "metrics": {"fid": {"value": 1.0, "contaminated": True}, "is": {"value": 2.0}}}
    assert evaluating.told(record, 1.0) == "step 3: fid 1 (trained against), is 2  (1.0 s)"


def test_the_averaged_weights_are_judged(tiny, tmp_path, judged):
    """With a decay of 0 the average is the weight itself; with a long one the images are those of the first steps."""
    sums = []
    for decay in (0.0, 0.9999):
        judged(Judge())
        changed = {"ema_decay": decay, "lr": 0.05, "steps": 6}
        run = train(DDPM, settings(tiny, tmp_path / f"{decay}", **EVAL, **changed), quiet=True).folder
        sums.append([record["protocol"]["images"] for record in records(run)])
    assert sums[0][-1] != sums[1][-1]


@pytest.mark.parametrize("stops", [1, 2, 3])
def test_a_signal_in_it_leaves_with_a_checkpoint_and_it_is_done_after_the_resume(tiny, tmp_path, judged, stops):
    judged(Judge())
    straight = train(DDPM, settings(tiny, tmp_path / "straight", **EVAL), quiet=True).folder
    judge = judged(Judge(stops=stops))
    given = settings(tiny, tmp_path / "run", **EVAL)
    outcome = train(DDPM, given, quiet=True)
    assert (outcome.finished, outcome.step) == (False, 2 * stops)
    assert (outcome.folder / f"checkpoint-{2 * stops}").is_dir()
    assert not (outcome.folder / "evaluation" / f"step-{2 * stops:07d}.json").exists()
    resumed = settings(tiny, tmp_path / "run", **EVAL, resume=True)
    assert train(DDPM, resumed, quiet=True).finished
    assert judge.calls == [*(2 * k for k in range(1, stops + 1)), *(2 * k for k in range(stops, 4))]
    kept = {k: v for k, v in digest(straight).items() if not k.startswith("checkpoint-") or k.startswith("checkpoint-6/")}
    again = digest(outcome.folder)
    assert {k: again[k] for k in kept} == kept
    assert {k for k in again if k.startswith("eval")} == {k for k in kept if k.startswith("eval")}


def test_a_resume_repeats_none_and_rewinds_those_beyond_its_checkpoint(tiny, tmp_path, judged):
    judge = judged(Judge())
    run = train(DDPM, settings(tiny, tmp_path / "run", **EVAL), quiet=True).folder
    straight = digest(run)
    assert train(DDPM, settings(tiny, run, **EVAL, resume=True), quiet=True).finished
    assert judge.calls == [2, 4, 6]  # at the end already
    shutil.rmtree(run / "checkpoint-6")
    train(DDPM, settings(tiny, run, **EVAL, resume=True), quiet=True)
    assert judge.calls == [2, 4, 6, 4, 6]  # from checkpoint-3
    assert digest(run) == straight
    assert [line["step"] for line in records(run)] == [2, 4, 6]


def test_lines_and_files_beyond_a_checkpoint_go_and_others_stay(tiny, tmp_path, judged):
    judged(Judge())
    run = train(DDPM, settings(tiny, tmp_path / "run", **EVAL), quiet=True).folder
    (run / "evaluation" / "evaluation.json").write_text("{}")  # of `percepta evaluate`
    RunFolder(run).rewind(3)
    assert [record["step"] for record in records(run)] == [2]
    assert sorted(p.name for p in (run / "evaluation").iterdir()) == ["evaluation.json", "step-0000002.json"]


def test_one_that_was_killed_between_its_line_and_its_file_is_done_once(tiny, tmp_path, judged):
    judge = judged(Judge())
    run = train(DDPM, settings(tiny, tmp_path / "run", **EVAL), quiet=True).folder
    straight = digest(run)
    (run / "evaluation" / "step-0000006.json").unlink()
    train(DDPM, settings(tiny, run, **EVAL, resume=True), quiet=True)
    assert judge.calls == [2, 4, 6, 6]
    assert digest(run) == straight


def test_the_best_checkpoint_is_kept_beside_the_newest(tiny, tmp_path, judged):
    values = {1: 9.0, 2: 5.0, 3: 1.0, 4: 4.0, 5: float("nan"), 6: 3.0}
    judged(Judge(values=values))
    flags = {**EVAL, "eval_every": 1, "checkpoint_every": 2, "keep_best": "fid"}
    run = train(DDPM, settings(tiny, tmp_path / "run", **flags), quiet=True).folder

    def kept():
        manifests = {p.name: json.loads((p / "MANIFEST.json").read_text())["score"] for p in run.glob("checkpoint-*")}
        return dict(sorted(manifests.items()))

    assert kept() == {"checkpoint-3": 1.0, "checkpoint-5": None, "checkpoint-6": 3.0}
    before = digest(run)
    train(DDPM, settings(tiny, run, **flags, resume=True), quiet=True)
    assert digest(run) == before
    plain = {k: v for k, v in flags.items() if k != "keep_best"}
    other = train(DDPM, settings(tiny, tmp_path / "plain", **plain), quiet=True).folder
    assert sorted(p.name for p in other.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert {k: v for k, v in digest(other).items() if k.startswith("checkpoint-6/") and k.endswith(".safetensors")} == {
        k: v for k, v in before.items() if k.startswith("checkpoint-6/") and k.endswith(".safetensors")
    }


@pytest.mark.parametrize(("flag", "value"), [("keep_best", "kid"), ("eval_num", 6), ("eval_space", "domain"), ("sampler", "euler")])
def test_scores_that_cannot_be_compared_do_not_meet(tiny, tmp_path, judged, flag, value):
    """The best by FID so far must not stand for ever because a later score is in another unit."""
    judged(Judge())
    flags = {**EVAL, "keep_best": "fid"}
    run = train(DDPM, settings(tiny, tmp_path / "run", **{**flags, "steps": 2}), quiet=True).folder
    with pytest.raises(ValueError, match=f"was started with --{flag.replace('_', '-')} .*now {value}"):
        train(DDPM, settings(tiny, run, **{**flags, flag: value}, resume=True), quiet=True)
    free = {**EVAL, "eval_num": 6}
    assert train(DDPM, settings(tiny, run, **free, resume=True), quiet=True).finished  # where nothing is kept by its score


def test_a_best_that_is_asked_for_later_may_find_evaluations_without_it(tiny, tmp_path, judged):
    judged(Judge())
    run = train(DDPM, settings(tiny, tmp_path / "run", **{**EVAL, "steps": 2}), quiet=True).folder
    file = run / "evaluation" / "step-0000002.json"
    file.write_text(file.read_text().replace('"fid"', '"kid"'))
    assert train(DDPM, settings(tiny, run, **EVAL, keep_best="fid", resume=True), quiet=True).finished
    assert {json.loads((p / "MANIFEST.json").read_text())["score"] is None for p in run.glob("checkpoint-*")} == {False}


def test_a_metric_of_which_more_is_better_is_kept_the_other_way(tiny, tmp_path):
    made = built("ddpm", tiny)[0].product
    file = tmp_path / "step.json"
    file.write_text(json.dumps({"metrics": {"precision": {"value": 0.25}}}))
    given = Settings(eval_every=1, keep_best="precision")
    assert Evaluator(made, given, CPU, None, Judge(), lower={"precision": False}).score(file) == -0.25
    assert Evaluator(made, given, CPU, None, Judge(), lower={"precision": True}).score(file) == 0.25
    assert Evaluator(made, given, CPU, None, Judge()).score(tmp_path / "none") is None


# ---- what is judged


def built(name, tiny, classes=None, **given):
    config = settings(tiny, None, **given)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = Data(lambda a, b: iter(()), 3, 8, classes, None, "", 4, lambda: images)
    return build_method(RECIPES[name](**({"perceptual": "none"} if name == "autoencoder" else {})), config, data), config


def test_samples_do_not_depend_on_how_many_are_drawn_together_nor_share_noise_with_previews(tiny, monkeypatch):
    method, config = built("ddpm", tiny, sample_num=5, eval_num=5)
    with torch.no_grad():  # a fresh network puts out zeros: its samples would depend on nothing but their noise
        for p in method.model.parameters():
            p += 0.05
    whole, how = method.product.judged(config, CPU, lambda *_: None, None)
    monkeypatch.setattr(product, "JUDGED", 2)
    parts, _ = method.product.judged(config, CPU, lambda *_: None, None)
    assert np.array_equal(whole, parts)
    assert whole.shape == (5, 8, 8, 3)
    assert whole.dtype == np.uint8
    preview, _ = method.product.preview(config, CPU, lambda *_: None)
    assert not any(np.array_equal(a, b) for a in whole for b in to_uint8(preview))
    assert how | {"by": "samples", "stream": "eval", "num": 5, "steps": 2, "seed": 0} == how


def test_the_classes_come_in_turn_and_eval_steps_count(tmp_path, monkeypatch):
    seen = []
    method, config = built("ddpm", Tiny(small_network(tmp_path / "net", classes=3)), classes=3, eval_num=7, eval_steps=4)
    monkeypatch.setattr(product, "JUDGED", 4)
    monkeypatch.setattr(
        product,
        "sample_images",
        lambda d, how, shape, rng, cond, *_: seen.append((how.steps, cond)) or torch.zeros(len(rng), 3, 8, 8),
    )
    method.product.judged(config, CPU, lambda *_: None, None)
    assert [steps for steps, _ in seen] == [4, 4]
    assert torch.cat([cond for _, cond in seen]).tolist() == [0, 1, 2, 0, 1, 2, 0]


class Reals:
    """Images that are numbered by their value."""

    def __init__(self, count):
        self.images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return [self.images[k] for k in indices]


@pytest.mark.parametrize(("there", "asked", "given"), [(20, 5000, 20), (20, 17, 17)])
def test_an_autoencoder_is_judged_by_reconstructions_in_order(tiny, there, asked, given):
    method, config = built("autoencoder", tiny, network=None, size=16, eval_num=asked)
    method.model.train()
    real = Reals(there)
    found, how = method.product.judged(config, CPU, lambda *_: None, real)
    assert found.shape == (given, 16, 16, 3)
    assert how == {"by": "reconstructions", "num": given, "weights": "ema"}
    assert all(m.training for m in method.model.modules())
    x = torch.from_numpy(real.images[3:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    method.model.eval()
    with torch.no_grad():
        expected = to_uint8(method.model.decode(method.model.encode(x)[0]))
    assert np.abs(found[3].astype(int) - expected[0].astype(int)).max() <= 1


def test_two_ranks_evaluate_once_and_leave_together(zygote, tiny, tmp_path):
    code = f"""
    import os, sys
    sys.path.insert(0, {str(evaluating.__file__.rpartition("/percepta/")[0])!r})
    from percepta import distributed
    from percepta.training import evaluating
    from percepta.training.evaluating import Evaluator

    class Found:
        def to_json(self):
            return {{"metrics": {{"fid": {{"value": 1.0}}}}, "protocol": {{}}, "warnings": [], "missing": {{}}}}

    def judge(made, real, *, check, **options):
        assert not distributed.active() and distributed.world().size == 1
        if os.environ["STOP"] == "1":
            os.kill(os.getpid(), 15)
            check()
        return Found()

    def prepared(product, settings, device, trained, note, check):
        return Evaluator(product, settings, device, None, judge)

    evaluating.prepared = prepared
    from percepta.cli import main
    args = {tiny.flags(tmp_path / "run", batch=5, steps=4, **{k: v for k, v in EVAL.items() if k != "checkpoint_every"})!r}
    raise SystemExit(main(["train", "ddpm", *args, *(["--resume"] if os.environ["STOP"] == "0" else [])]))
    """
    for stop, expected in (("1", 3), ("0", 0)):
        for process in zygote.ranks(2, code, free_port(), STOP=stop):
            assert process.wait(100) == expected, process.err.read_text()
        step = 2 if stop == "1" else 4
        assert checkpoint.load(tmp_path / "run").step == step
    assert [record["step"] for record in records(tmp_path / "run")] == [2, 4]
    assert {name for name in names(tmp_path / "run") if name.startswith("evaluation/")} == {
        "evaluation/step-0000002.json",
        "evaluation/step-0000004.json",
    }


# ---- with the real thing


def test_a_run_is_judged_in_a_real_space_and_has_the_same_bits(dropping, tmp_path):
    real = {**EVAL, "eval_num": 12, "eval_metrics": "fid,kid,pr", "eval_space": "pixels", "cache": tmp_path / "cache"}
    with_ = train(DDPM, settings(dropping, tmp_path / "with", **real), quiet=True).folder
    without = train(DDPM, settings(dropping, tmp_path / "without", checkpoint_every=3), quiet=True).folder
    found = records(with_)
    assert [record["step"] for record in found] == [2, 4, 6]
    assert set(found[0]["metrics"]) == {"fid", "kid", "precision", "recall"}
    assert found[0]["protocol"]["reference"]["count"] == 20
    assert found[0]["protocol"]["generated"]["count"] == 12
    assert found[0]["protocol"]["generated"]["drawn"]["stream"] == "eval"
    assert {k: v for k, v in digest(with_).items() if not k.startswith("eval")} == digest(without)


def test_reconstructions_are_compared_with_the_images_they_are_of(tmp_path):
    given = {**EVAL, "eval_num": 6, "eval_space": "pixels", "cache": tmp_path / "cache", "steps": 2, "size": 16}
    recipe = RECIPES["autoencoder"](perceptual="none")
    run = train(recipe, Settings(**{**FLAGS, **given, "out": tmp_path / "run"}), quiet=True).folder
    protocol = records(run)[0]["protocol"]
    assert protocol["reference"]["count"] == protocol["generated"]["count"] == 6
    assert protocol["generated"]["drawn"]["by"] == "reconstructions"
