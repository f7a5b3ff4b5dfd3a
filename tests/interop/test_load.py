"""Pipelines that diffusers wrote are read: what the network predicts, on which schedule, in which latents."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from percepta.formulation import EDM, FLOW, Denoiser, Formulation, as_x0_hat
from percepta.interop import export_pipeline, formulation_of, load_pipeline, scheduler_for
from percepta.interop.schedules import defaults_of
from percepta.networks import adapt
from percepta.path import BetaTable, Cosine, LinearBeta, Rectified, VarianceExploding

SIZE = 8


def unet(channels=3, out=None, **options):
    return UNet2DModel(sample_size=SIZE, in_channels=channels, out_channels=out or channels, block_out_channels=(8,), layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4, add_attention=False, **options).eval()  # fmt: skip


def vae():
    return AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, scaling_factor=0.3)


def scheduler_config(folder):
    return folder / "scheduler" / "scheduler_config.json"


BETAS = {
    "linear": {"beta_schedule": "linear"},
    "narrow": {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 500},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "table": {"trained_betas": torch.linspace(0.001, 0.01, 1000, dtype=torch.float64).sqrt().mul(0.3).tolist()},
}
CLASSES = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
           "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler")  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("betas", BETAS)
def test_every_table_of_betas_is_read(cls, betas):
    scheduler = getattr(diffusers, cls)(**BETAS[betas])
    config = json.loads(scheduler.to_json_string())
    found = formulation_of(config)
    assert found.output == "noise"
    assert isinstance(found.path, LinearBeta | Cosine | BetaTable)
    torch.testing.assert_close(found.path.abar[1:].float(), scheduler.alphas_cumprod.float(), atol=2e-6, rtol=2e-4)


def test_defaults_of_a_class_count():
    """Heun's scheduler has betas of its own by default; a config that leaves them out means those."""
    found = formulation_of({"_class_name": "HeunDiscreteScheduler"})
    assert found.path == LinearBeta(1000, 0.00085, 0.012)


@pytest.mark.parametrize(
    "options", [{"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}]
)
def test_schedules_without_a_name_become_tables(options):
    scheduler = DDPMScheduler(**options)
    found = formulation_of(json.loads(scheduler.to_json_string()))
    assert isinstance(found.path, BetaTable)
    torch.testing.assert_close(found.path.abar[1:].float(), scheduler.alphas_cumprod, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize(("prediction", "output"), [("epsilon", "noise"), ("sample", "clean"), ("v_prediction", "velocity")])
def test_predictions_mean_what_diffusers_means(prediction, output):
    """x0 from the same raw output, by our coefficients and by diffusers' step."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    found = formulation_of(json.loads(scheduler.to_json_string()))
    assert found.output == output
    x, raw = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    scheduler.set_timesteps(10)
    k = int(scheduler.timesteps[2])
    wanted = scheduler.step(raw, k, x).pred_original_sample
    torch.testing.assert_close(as_x0_hat(output, raw, x, found.path.time_of([k]), found.path), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [{"_class_name": cls, "timestep_spacing": spacing} for cls in CLASSES for spacing in ("leading", "linspace", "trailing")]
    + [{"_class_name": "DDIMScheduler", "num_train_timesteps": 70, "timestep_spacing": "trailing"}]
    + [
        {"_class_name": f"FlowMatch{solver}DiscreteScheduler", "shift": shift}
        for solver in ("Euler", "Heun")
        for shift in (1.0, 3.0)
    ]
    + [{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}]
    + [{"_class_name": "EDMEulerScheduler"}, {"_class_name": "EDMDPMSolverMultistepScheduler"}],
)
def test_what_is_read_can_be_sampled_and_exported(config):
    """Habits that Percepta cannot follow are dropped for the usual ones, so that no loaded pipeline is a dead end."""
    resolved = defaults_of(config).resolved(formulation_of(config))
    assert (
        formulation_of(json.loads(scheduler_for(formulation_of(config), resolved).to_json_string())).output
        == formulation_of(config).output
    )
    if config["_class_name"] == "DDPMScheduler":
        assert (resolved.solver, resolved.spacing, resolved.clip) == ("ddpm", config["timestep_spacing"], 1.0)


def test_flows_and_edm():
    flow = formulation_of(
        dict(diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=3.0).config)
        | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    )
    assert (flow.path, flow.output) == (Rectified(time_scale=500.0), "flow")
    edm = formulation_of({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 60.0})
    assert (edm.path, edm.output) == (VarianceExploding(t_max=60.0), "edm")
    multistep = formulation_of(
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    )
    assert multistep.path == FLOW.path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "CMStochasticIterativeScheduler"}, "give the formulation yourself"),
        ({"_class_name": "MyScheduler"}, "is not one of diffusers"),
        ({}, "is not one of diffusers"),
        ({"_class_name": "UNet2DModel"}, "is not one of diffusers"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, "sigma_data=1.0"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "v_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "give the formulation yourself"),
    ],
)
def test_schedulers_that_say_too_little_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        formulation_of(config)


def test_the_library_pipelines(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    DDIMPipeline(
        unet(), DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample_range=2.0)
    ).save_pretrained(tmp_path / "ddim")
    LDMPipeline(VQModel(block_out_channels=(8,), latent_channels=3, norm_num_groups=4), unet(), DDIMScheduler()).save_pretrained(
        tmp_path / "ldm"
    )
    dit = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=SIZE,
        num_embeds_ada_norm=2,
    )
    DiTPipeline(dit, vae(), DDIMScheduler()).save_pretrained(tmp_path / "dit")
    index = json.loads((tmp_path / "dit" / "model_index.json").read_text())
    (tmp_path / "dit" / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": "cat", "1": "dog, hound"}}))

    ddpm, ddim, ldm, loaded = (load_pipeline(tmp_path / name) for name in ("ddpm", "ddim", "ldm", "dit"))
    assert (ddpm.origin["pipeline"], ddpm.sampler.solver, ddpm.sampler.clip, ddpm.vae) == ("DDPMPipeline", "ddpm", 1.0, None)
    assert ddim.denoiser.formulation == Formulation(LinearBeta(1000, 1e-4, 0.02, True), "velocity")
    assert (ddim.sampler.solver, ddim.sampler.clip, ddim.sampler.spacing) == ("ddim", 2.0, "leading")
    assert isinstance(ldm.vae, VQModel)
    assert (loaded.class_names, loaded.denoiser.network.num_classes) == (("cat", "dog, hound"), 2)
    x, t = torch.randn(2, 4, SIZE, SIZE), torch.tensor([0.5, 1.0], dtype=torch.float64)
    with torch.no_grad():
        x0_hat, taps = loaded.denoiser.full(x, t, torch.tensor([0, 1]))
        eps = dit.eval()(x, torch.tensor([499, 999]), torch.tensor([0, 1])).sample[:, :4]
    assert taps["extra"].shape == x.shape  # learn_sigma: 8 channels of 4
    torch.testing.assert_close(x0_hat, as_x0_hat("noise", eps, x, t, loaded.denoiser.path))


def test_a_run_and_its_parts(tmp_path):
    denoiser = Denoiser(adapt(unet(num_class_embeds=3), num_classes=2), EDM)
    export_pipeline(tmp_path / "run" / "model", denoiser, class_names=["a", "b"])
    for path in ("run", "run/model", "run/model/unet"):
        loaded = load_pipeline(tmp_path / path)
        assert loaded.denoiser.formulation == EDM
        assert loaded.denoiser.network.num_classes == 2
    assert load_pipeline(str(tmp_path / "run")).class_names == ("a", "b")


def test_a_bare_model_needs_a_schedule(tmp_path):
    unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="--predict"):
        load_pipeline(tmp_path / "unet")
    assert load_pipeline(tmp_path / "unet", FLOW).denoiser.formulation == FLOW
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "unet")
    assert load_pipeline(tmp_path / "unet").denoiser.path == Cosine()
    shutil.move(tmp_path / "unet" / "scheduler_config.json", tmp_path)
    assert load_pipeline(tmp_path / "unet").denoiser.path == Cosine()


def test_old_weights_are_read_as_tensors_only(tmp_path):
    model = unet()
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "p", safe_serialization=False)
    assert (tmp_path / "p" / "unet" / "diffusion_pytorch_model.bin").is_file()
    loaded = load_pipeline(tmp_path / "p").denoiser.network.model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    torch.save({"w": print}, tmp_path / "p" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        load_pipeline(tmp_path / "p")


def test_code_in_the_folder_is_not_run(tmp_path):
    """An export carries code for diffusers; reading it back never runs that, whatever it says."""
    export_pipeline(tmp_path / "out", Denoiser(adapt(unet(num_class_embeds=3), num_classes=2), FLOW))
    code = tmp_path / "out" / "percepta_pipeline.py"
    code.write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    assert load_pipeline(tmp_path / "out").denoiser.formulation == FLOW
    assert not (tmp_path / "was-run").exists()


def test_a_learned_variance_must_be_there(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "p")
    with pytest.raises(ValueError, match="reads a learned variance"):
        load_pipeline(tmp_path / "p")
    DDPMPipeline(unet(out=6), DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "q")
    assert load_pipeline(tmp_path / "q").denoiser.network.out_channels == 6


def test_cached_repositories(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="nor in the Hugging Face cache"):
        load_pipeline("someone/tiny")
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(repo / "snapshots" / ("a" * 40))
    assert load_pipeline("someone/tiny").denoiser.path == LinearBeta()


def test_text_parts_by_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                                                                  bos_token_id=0, eos_token_id=1, pad_token_id=1))  # fmt: skip
    net = diffusers.UNet2DConditionModel(sample_size=SIZE, block_out_channels=(8,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
                                         up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4)  # fmt: skip
    folder = tmp_path / "sd"
    for name, part in {
        "unet": net,
        "vae": vae(),
        "text_encoder": text,
        "tokenizer": tokenizer,
        "scheduler": diffusers.PNDMScheduler(),
    }.items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", type(tokenizer).__name__], "safety_checker": [None, None]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    loaded = load_pipeline(folder)
    assert set(loaded.parts) == {"text_encoder", "tokenizer"}
    hidden = loaded.parts["text_encoder"](torch.tensor([[0, 1]])).last_hidden_state
    assert loaded.denoiser(
        torch.randn(1, 4, SIZE, SIZE), torch.tensor([0.5], dtype=torch.float64), {"encoder_hidden_states": hidden}
    ).shape == (1, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match="text encoder beside it"):
        export_pipeline(tmp_path / "out", loaded.denoiser)
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["os", "system"]}))
    with pytest.raises(ValueError, match=r"os\.system"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: (f / "model_index.json").write_text("{}"), "is needed, got 0"),
        (lambda f: (f / "model_index.json").unlink(), "is neither a pipeline"),
        (lambda f: shutil.rmtree(f / "scheduler"), "--predict"),
        (lambda f: shutil.rmtree(f / "unet"), "there is no folder"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "weights are missing|no safetensors"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_broken_folders_are_explained(tmp_path, change, message):
    folder = tmp_path / "p"
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
    change(folder)
    with pytest.raises(ValueError, match=message):
        load_pipeline(folder)
