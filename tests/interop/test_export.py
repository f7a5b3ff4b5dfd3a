"""Exports load where Percepta is not installed, and give the images that the denoiser itself gives."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel

from percepta.formulation import EDM, FLOW, Denoiser, Formulation, noise_of
from percepta.interop import SamplerDefaults, export_pipeline, load_pipeline
from percepta.networks import CascadeSpec, adapt, build_cascade
from percepta.networks.cascade import Cascade
from percepta.networks.ddpmpp import DDPMPP
from percepta.path import BetaTable, Cosine, LinearBeta

STEPS, SIZE, BATCH, SEED = 5, 8, 3, 7

CHILD = Path(__file__).parent / "child.py"


def shake(model, scale=0.15):
    """Weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale / max(p[0].numel() if p.ndim > 1 else 10, 1) ** 0.5)
    return model.eval()


def unet(channels=3, out=None, **options):
    return shake(UNet2DModel(sample_size=SIZE, in_channels=channels, out_channels=out or channels, block_out_channels=(16, 16), layers_per_block=1,
                             down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
                             attention_head_dim=8, **options))  # fmt: skip


def dit(classes, out=8):
    return shake(DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=out, num_layers=2, sample_size=SIZE,
                                       patch_size=2, num_embeds_ada_norm=classes))  # fmt: skip


def mmdit(classes):
    return shake(SD3Transformer2DModel(sample_size=SIZE, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
                                       num_attention_heads=2, joint_attention_dim=classes + 1, caption_projection_dim=16,
                                       pooled_projection_dim=classes + 1, pos_embed_max_size=SIZE))  # fmt: skip


def vae(**options):
    return shake(AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                               layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16, **options))  # fmt: skip


def cascade(path, kind="cascade", classes=None, **options):
    """A denoiser whose network is ours and does not fit in one class of diffusers."""
    small = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "time_embedding_dim": 16}
    network = build_cascade(CascadeSpec(kind, overrides=small, **options), path, size=SIZE, num_classes=classes)
    shake(network.model)
    return Denoiser(network, Formulation(path, "clean"))


# --- what the exports are compared with: the denoiser and the textbook's formulas ---------------------------------------------------


def guided(denoiser, x, t, labels, scale):
    times = torch.full((len(x),), t, dtype=torch.float64)
    if labels is None or scale == 1:
        return denoiser(x, times, labels)
    null = denoiser.network.null_condition(len(x))
    without = denoiser(x, times, null)
    return without + scale * (denoiser(x, times, labels) - without)


def ddim(denoiser, x, labels, scale, generator, clip=None):
    path = denoiser.path
    ks = [i * (path.num_steps // STEPS) for i in reversed(range(STEPS))]
    for k, after in zip(ks, [*ks[1:], -1], strict=True):
        t, s = path.time_of([k]), path.time_of([after])
        x0 = guided(denoiser, x, float(t), labels, scale)
        eps = noise_of(x0, x, t, path)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        x = path.alpha(s).float() * x0 + path.sigma(s).float() * eps
    return x


def ddpm(denoiser, x, labels, scale, generator, clip=None):
    path = denoiser.path
    ks = [i * (path.num_steps // STEPS) for i in reversed(range(STEPS))]
    for k, after in zip(ks, [*ks[1:], -1], strict=True):
        t, abar, prev = path.time_of([k]), path.abar[k + 1], path.abar[after + 1]
        x0 = guided(denoiser, x, float(t), labels, scale)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        beta = 1 - abar / prev
        mean = prev.sqrt() * beta / (1 - abar) * x0 + (abar / prev).sqrt() * (1 - prev) / (1 - abar) * x
        x = mean.float()
        if k > 0:
            x = x + ((1 - prev) / (1 - abar) * beta).sqrt().float() * torch.randn(x.shape, generator=generator)
    return x


def euler(denoiser, x, labels, scale, times):
    for t, s in itertools.pairwise(times):
        x0 = guided(denoiser, x, t, labels, scale)
        x = x0 + s / t * (x - x0) if denoiser.formulation.output == "edm" else x + (s - t) * (x - x0) / t
    return x


def karras():
    ramp = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return [*sigmas.tolist(), 0.0]


def expected(kind, denoiser, channels, labels=None, scale=1.0, autoencoder=None, clip=None):
    generator = torch.Generator().manual_seed(SEED)
    size = denoiser.network.sample_size
    x = torch.randn(BATCH, channels, size, size, generator=generator)
    with torch.no_grad():
        if kind == "ddim":
            x = ddim(denoiser, x, labels, scale, generator, clip)
        elif kind == "dpmpp":
            from percepta.samplers import dpmpp_2m, grid, integrate

            x = integrate(dpmpp_2m(), denoiser, x, grid(denoiser.path, STEPS, "trailing"))
        elif kind == "ddpm":
            x = ddpm(denoiser, x, labels, scale, generator, clip)
        elif kind == "edm":
            x = euler(denoiser, x * (80.0**2 + 1) ** 0.5, labels, scale, karras())
        elif kind == "flow":
            x = euler(denoiser, x, labels, scale, [1 - i / STEPS for i in range(STEPS)] + [0.0])
        else:
            assert kind == "flow-diffusers"
            x = euler(denoiser, x, labels, scale, [*torch.linspace(1, 0.001, STEPS, dtype=torch.float64).tolist(), 0.0])
        if autoencoder is not None:
            x = autoencoder.decode(x / autoencoder.config.scaling_factor + (autoencoder.config.shift_factor or 0.0)).sample
    return (x / 2 + 0.5).clamp(0, 1)


def larger(denoiser):
    """One that goes on at twice its size."""
    denoiser.network.resize(2 * SIZE)
    return denoiser


TRUST = {"trust_remote_code": True}
BESIDE = {"custom_pipeline": "percepta_pipeline", "trust_remote_code": True}
LABELS = [0, 2, 1]
COSINE, LINEAR = Formulation(Cosine(), "velocity"), Formulation(LinearBeta())
TABLE = Formulation(BetaTable(tuple(torch.linspace(1e-3, 0.2, 100, dtype=torch.float64).tolist())), "clean")


def cases():
    """name: (denoiser, export options, pipeline, load options, call options, reference)."""
    ae, shifted = vae(scaling_factor=0.4), vae(scaling_factor=0.4, shift_factor=0.3)
    plain, classes, many, ten = unet(), unet(num_class_embeds=4), dit(1000), dit(3)
    learned, half = unet(out=6), adapt(unet(), time_factor=0.25)
    karras_net = shake(
        DDPMPP(SIZE, model_channels=16, channel_mult=(1, 1), num_blocks=1, attention_sizes=(4,), num_classes=3, augment_dim=9)
    )
    by_class = Denoiser(adapt(classes, num_classes=3), LINEAR)
    batch, labels = {"batch_size": BATCH}, {"class_labels": LABELS}
    shown, cond = {**batch, **labels}, torch.tensor(LABELS)

    def on(model, formulation, **options):
        return Denoiser(adapt(model, **options), formulation)

    ddpm_clip = SamplerDefaults("ddpm", STEPS, clip=1.0)
    return {
        "eps": (on(plain, LINEAR), {}, "DDIMPipeline", {}, batch, ("ddim", {})),
        "clip": (on(plain, LINEAR), {"sampler": SamplerDefaults(clip=0.7)}, "DDIMPipeline", {}, batch, ("ddim", {"clip": 0.7})),
        "x0-table": (on(plain, TABLE), {}, "DDIMPipeline", {}, batch, ("ddim", {})),
        "v-cosine": (on(plain, COSINE), {}, "DDIMPipeline", {}, batch, ("ddim", {})),
        "ddpm": (on(plain, LINEAR), {"sampler": ddpm_clip}, "DDPMPipeline", {}, batch, ("ddpm", {"clip": 1.0})),
        "dpmpp": (on(plain, LINEAR), {"sampler": SamplerDefaults("dpmpp")}, "DDPMPipeline", {}, batch, ("dpmpp", {})),
        "scaled": (on(plain, Formulation(LinearBeta(500, 0.001, 0.03, True))), {}, "DDIMPipeline", {}, batch, ("ddim", {})),
        "classes": (by_class, {"class_names": "abc"}, "ConsistencyModelPipeline", {}, shown, ("ddim", {"labels": cond})),
        "classes-guided": (by_class, {}, "ConsistencyModelPipeline", BESIDE, labels | {"guidance_scale": 2.0}, ("ddim", {"labels": cond, "scale": 2.0})),
        "flow": (on(plain, FLOW), {}, "DDPMPipeline", {}, batch, ("flow-diffusers", {})),
        "flow-even": (on(plain, FLOW), {}, "DDPMPipeline", BESIDE, batch, ("flow", {})),
        "flow-classes": (on(classes, FLOW, num_classes=3), {}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 1.5}, ("flow", {"labels": cond, "scale": 1.5})),
        "edm": (on(plain, EDM), {}, "ConsistencyModelPipeline", {}, batch, ("edm", {})),
        "edm-classes": (on(classes, EDM, num_classes=3), {}, "ConsistencyModelPipeline", {}, shown, ("edm", {"labels": cond})),
        "ddpmpp": (on(karras_net, EDM), {}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 2.0}, ("edm", {"labels": cond, "scale": 2.0})),
        "cascade": (cascade(Cosine(4000)), {}, "PerceptaPipeline", TRUST, batch, ("ddim", {})),
        "cascade-ddpm": (cascade(LinearBeta(), phi="fixres", concat=True, ratio="raw"), {"sampler": ddpm_clip}, "PerceptaPipeline", TRUST, batch,
                         ("ddpm", {"clip": 1.0})),
        "dual-classes": (cascade(Cosine(), "dual", 3), {}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 2.0},
                         ("ddim", {"labels": cond, "scale": 2.0})),
        "learned": (on(learned, LINEAR), {}, "PerceptaPipeline", TRUST, batch, ("ddim", {})),
        "time-factor": (Denoiser(half, Formulation(LinearBeta(4000))), {}, "PerceptaPipeline", TRUST, batch, ("ddim", {})),
        "dit": (on(many, LINEAR), {"vae": ae, "class_names": [f"c{i}" for i in range(1000)]}, "DiTPipeline", {}, labels | {"guidance_scale": 2.0},
                ("ddim", {"labels": cond, "scale": 2.0, "autoencoder": ae})),
        "dit-few": (on(ten, COSINE), {"vae": ae}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 3.0},
                    ("ddim", {"labels": cond, "scale": 3.0, "autoencoder": ae})),
        "ldm": (on(unet(4), LINEAR), {"vae": ae}, "LDMPipeline", {}, batch, ("ddim", {"autoencoder": ae})),
        "ldm-shift": (on(unet(4), LINEAR), {"vae": shifted}, "PerceptaPipeline", TRUST, batch, ("ddim", {"autoencoder": shifted})),
        "latent-flow": (on(unet(4), FLOW), {"vae": ae}, "PerceptaPipeline", TRUST, batch, ("flow", {"autoencoder": ae})),
        "mmdit": (on(mmdit(3), FLOW, num_classes=3), {"vae": shifted}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 2.0},
                  ("flow", {"labels": cond, "scale": 2.0, "autoencoder": shifted})),
        "dit-larger": (larger(on(dit(1000), LINEAR)), {"vae": ae}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 2.0},
                       ("ddim", {"labels": cond, "scale": 2.0, "autoencoder": ae})),
        "mmdit-larger": (larger(on(mmdit(3), FLOW, num_classes=3)), {"vae": shifted}, "PerceptaPipeline", TRUST, labels | {"guidance_scale": 2.0},
                         ("flow", {"labels": cond, "scale": 2.0, "autoencoder": shifted})),
        "ddpmpp-larger": (larger(on(copy.deepcopy(karras_net), EDM)), {}, "PerceptaPipeline", TRUST, labels, ("edm", {"labels": cond})),
    }  # fmt: skip


CASES = cases()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every case exported, and sampled in one process that cannot import percepta."""
    root = tmp_path_factory.mktemp("exports")
    jobs = []
    for name, (denoiser, options, _, load, call, _) in CASES.items():
        export_pipeline(root / name, denoiser, **options)
        pt = name != "ldm"  # LDMPipeline knows no "pt"
        jobs.append({"name": name, "folder": str(root / name), "load": load, "call": call, "seed": SEED, "steps": STEPS, "pt": pt})
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD), "jobs.json", "images.safetensors"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    return root, load_file(root / "images.safetensors"), done.stderr


@pytest.mark.parametrize("name", CASES)
def test_same_images_without_percepta(exported, name):
    root, images, _ = exported
    denoiser, _, pipeline, _, _, (kind, options) = CASES[name]
    index = json.loads((root / name / "model_index.json").read_text())["_class_name"]
    assert (index[-1] if isinstance(index, list) else index) == pipeline
    wanted = expected(kind, denoiser, denoiser.network.in_channels, **options)
    assert wanted.std() > 0.02
    torch.testing.assert_close(images[name], wanted, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_reimport_is_the_same_denoiser(exported, name):
    root, _, _ = exported
    denoiser, options, *_ = CASES[name]
    loaded = load_pipeline(root / name)
    assert loaded.denoiser.formulation == denoiser.formulation
    assert loaded.denoiser.network.num_classes == denoiser.network.num_classes
    assert loaded.class_names == (tuple(options["class_names"]) if "class_names" in options else None)
    assert (loaded.vae is None) == ("vae" not in options)
    size = denoiser.network.sample_size
    assert loaded.denoiser.network.sample_size == size
    x, t = torch.randn(2, denoiser.network.in_channels, size, size), torch.tensor([0.3, 0.9], dtype=torch.float64)
    cond = None if denoiser.network.num_classes is None else torch.tensor([0, 2])
    with torch.no_grad():
        first, second = denoiser.full(x, t, cond), loaded.denoiser.full(x, t, cond)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][k], second[1][k]) for k in first[1])


def test_the_scheduler_alone_says_the_same(exported):
    """Without percepta.json the formulation comes from the scheduler, to the last digit of its table."""
    root, _, _ = exported
    t = torch.linspace(0.1, 1, 7, dtype=torch.float64)
    for name in ("eps", "x0-table", "v-cosine", "scaled", "flow", "edm"):
        (root / name / "percepta.json").rename(root / name / "kept")
        try:
            found, wanted = load_pipeline(root / name).denoiser.formulation, CASES[name][0].formulation
        finally:
            (root / name / "kept").rename(root / name / "percepta.json")
        assert found.output == wanted.output
        assert all(torch.equal(a, b) for a, b in zip(found.coefficients(t), wanted.coefficients(t), strict=True)), name


@pytest.mark.parametrize(
    ("formulation", "defaults"),
    [
        (LINEAR, SamplerDefaults(steps=7)),
        (COSINE, SamplerDefaults(steps=10, spacing="trailing")),
        (LINEAR, SamplerDefaults("dpmpp", 7)),
        (EDM, SamplerDefaults("euler", 6)),
        (EDM, SamplerDefaults("dpmpp", 6)),
        (FLOW, SamplerDefaults("euler", 6, "shifted", shift=2.0)),
    ],
)
def test_exported_schedulers_sample_as_percepta_does(formulation, defaults):
    """The scheduler that an export writes, in the exported pipeline's loop, against percepta.samplers on the same noise."""
    from percepta.interop import scheduler_for
    from percepta.interop.percepta_pipeline import PerceptaPipeline
    from percepta.samplers import grid, integrate, solver, start

    full = defaults.resolved(formulation)
    denoiser = Denoiser(adapt(unet()), formulation)
    pipe = PerceptaPipeline(scheduler_for(formulation, defaults), denoiser.network.model)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    times = grid(formulation.path, full.steps, full.spacing, shift=full.shift)
    with torch.no_grad():
        wanted = integrate(solver(full.solver), denoiser, start(denoiser.path, float(times[0]), noise), times)
    got = pipe(batch_size=2, latents=noise, num_inference_steps=full.steps, output_type="pt").images
    # EDM's schedulers start from sqrt(80^2 + 1) times the noise
    torch.testing.assert_close(got, (wanted / 2 + 0.5).clamp(0, 1), atol=3e-4 if formulation is EDM else 3e-5, rtol=0)


def test_nothing_is_left_behind_and_cards_are_whole(exported):
    root, _, errors = exported
    assert not [p for p in root.iterdir() if p.name.startswith(".")]
    assert "Keyword arguments" not in errors
    for name in CASES:
        card = (root / name / "README.md").read_text()
        assert "None" not in card
        assert f'DiffusionPipeline.from_pretrained("{name}"' in card
        assert str(root) not in card


def test_the_scheduler_must_agree_with_the_record(tmp_path):
    out = export_pipeline(tmp_path / "out", CASES["eps"][0])
    file = out / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(ValueError, match="disagree"):
        load_pipeline(out)


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path):
    out = export_pipeline(tmp_path / "out", CASES["flow"][0])
    export_pipeline(out, CASES["eps"][0])
    assert load_pipeline(out).denoiser.formulation == LINEAR
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="no earlier export"):
        export_pipeline(mine, CASES["eps"][0])
    assert (mine / "thesis.txt").exists()


def test_a_failing_export_leaves_the_old_one(tmp_path, monkeypatch):
    out = export_pipeline(tmp_path / "out", CASES["eps"][0])
    before = sorted(str(p) for p in out.rglob("*"))
    monkeypatch.setattr(UNet2DModel, "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_pipeline(out, CASES["flow"][0])
    assert sorted(str(p) for p in out.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": SamplerDefaults("heun")}, "no scheduler for the solver 'heun'"),
        ({"sampler": SamplerDefaults(spacing="quadratic", eta=1.0)}, "does not sample with the spacing 'quadratic'"),
        ({"sampler": SamplerDefaults("dpmpp", clip=1.0)}, "clipping"),
        ({"sampler": SamplerDefaults("dpmpp", spacing="leading")}, "does not sample"),
        ({"sampler": SamplerDefaults(steps=30, spacing="trailing", clip=1.0)}, "divisor"),
        ({"sampler": SamplerDefaults(steps=0)}, "steps must be"),
        ({"class_names": ["a"]}, "1 class names for a network of None classes"),
        ({"card": {"licence": "MIT"}}, "no field licence"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_pipeline(tmp_path / "out", CASES["eps"][0], **options)
    assert not list(tmp_path.iterdir())


def test_own_code_is_plain(tmp_path):
    from percepta.interop.travelling import travelling_source

    for text in (
        travelling_source(DDPMPP),
        travelling_source(Cascade),
        Path(sys.modules["percepta.interop.export"].__file__).with_name("percepta_pipeline.py").read_text(),
    ):
        assert "jaxtyping" not in text
        assert "import percepta" not in text
        assert "from percepta" not in text
    with pytest.raises(ValueError, match="cannot travel"):
        travelling_source(Denoiser)
