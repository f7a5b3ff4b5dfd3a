"""LatentPrior: what a diffusion model knows of one domain's latents, given the same image as another autoencoder sees it.

    z_t, t, E_other(x)  ->  z_0_hat        z_0 = E_own(x)

The two latents are laid side by side as channels, so that any network of images takes them. All three parts are frozen: they pass gradients on, and get
none. A folder holds config.json (what the network's output means), and denoiser/, own/, other/ as diffusers writes them: safetensors and JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.absent import absent
from percepta.formulation import Cond, Denoiser, Formulation, formulation_from_config
from percepta.networks.adapter import Network, adapt
from percepta.networks.autoencoders import Autoencoder, load_autoencoder
from percepta.networks.loading import load_model

GIVEN = "given"  # the condition: the other latent
NAME = "LatentPrior"
PARTS = ("denoiser", "own", "other")


class Conditioned(nn.Module):
    """A network of more channels than it denoises: the further ones are the condition `given`."""

    def __init__(self, network: Network, channels: int) -> None:
        if not (0 < channels < network.in_channels and network.out_channels >= channels):
            raise ValueError(
                f"of {network.in_channels} channels that the network reads {channels} are denoised and the rest given, and it puts out "
                f"{network.out_channels}: that does not fit"
            )
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Float[Tensor, "b o h w"]:
        if not isinstance(cond, dict) or set(cond) != {GIVEN}:
            raise ValueError(f"this network is told the latents of another autoencoder, as {{{GIVEN!r}: latents}}")
        given = cond[GIVEN]
        if given.shape[2:] != x.shape[2:] or given.shape[1] != self.network.in_channels - self.channels:
            raise ValueError(
                f"latents {tuple(x.shape[1:])} are given others of {tuple(given.shape[1:])}, and {self.network.in_channels - self.channels} channels of "
                "the same size are needed"
            )
        return self.network(torch.cat([x, given.to(x.dtype)], 1), time)


class LatentPrior(nn.Module):
    """A conditional denoiser of the latents of `own`, given those of `other`. It is frozen when it is made."""

    def __init__(self, denoiser: Denoiser, own: Autoencoder, other: Autoencoder) -> None:
        if not isinstance(denoiser.network, Conditioned):
            raise ValueError(f"a prior is told another latent, as a Conditioned network is; got {type(denoiser.network).__name__}")
        super().__init__()
        self.denoiser, self.own, self.other = denoiser, own, other
        self.requires_grad_(False).eval()


def save_prior(folder: Path, denoiser: Denoiser, own: Autoencoder, other: Autoencoder) -> None:
    """What load_prior reads, of parts that may go on learning."""
    network = denoiser.network
    assert isinstance(network, Conditioned)
    folder.mkdir(parents=True, exist_ok=True)
    network.network.save_pretrained(folder / "denoiser")
    own.save_pretrained(folder / "own")
    other.save_pretrained(folder / "other")
    config = {"_class_name": NAME, "formulation": denoiser.formulation.to_config()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_prior(path: str | Path, known: Sequence[Autoencoder] = ()) -> LatentPrior:
    """The prior of a run of the recipe `prior`, or of its folder model/. Of its autoencoders, those that are `known` by all their weights are these very ones:
    their latents are then computed once for all who read them."""
    folder = prior_folder(path)
    network = adapt(load_model(folder / "denoiser"))
    own, other = (_one_of(known, load_autoencoder(folder / name)) for name in PARTS[1:])
    meaning: Formulation = formulation_from_config(_config(folder)["formulation"])
    return LatentPrior(Denoiser(Conditioned(network, own.latent_channels), meaning), own, other)


def prior_folder(path: str | Path, flag: str = "") -> Path:
    """Where load_prior finds it; ValueError, which begins with `flag`, where there is none."""
    if not Path(path).exists():
        raise ValueError(f"{flag}{absent(path, 'a run of percepta train prior')}")
    for folder in (Path(path) / "model", Path(path)):
        if (folder / "config.json").is_file():
            _config(folder, flag)
            return folder
    raise ValueError(
        f"{flag}{path} holds no prior (no config.json in it or in model/): give a run of percepta train prior that has ended"
    )


def _one_of(known: Sequence[Autoencoder], read: Autoencoder) -> Autoencoder:
    return next((one for one in known if _same(one, read)), read)


def _same(one: Autoencoder, two: Autoencoder) -> bool:
    made = [  # as JSON has it: tuples are lists once they have been read
        json.dumps({k: v for k, v in dict(coder.model.config).items() if not k.startswith("_")}, sort_keys=True)
        for coder in (one, two)
    ]
    a, b = one.state_dict(), two.state_dict()
    return type(one.model) is type(two.model) and made[0] == made[1] and all(torch.equal(x, b[name]) for name, x in a.items())


def _config(folder: Path, flag: str = "") -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("_class_name") != NAME:
        raise ValueError(f"{flag}{folder} holds no prior: give a run of percepta train prior that has ended")
    return config
