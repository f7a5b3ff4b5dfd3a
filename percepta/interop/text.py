"""The text side of a pipeline: prompts to the conditions that its network reads, as diffusers' own pipelines make them.

    Stable Diffusion 1, 2    encoder_hidden_states  CLIP's last hidden states
    Stable Diffusion 3       encoder_hidden_states  the last hidden states but one of two CLIPs side by side, then T5's behind them
                             pooled_projections     the two CLIPs' embeddings of the whole text, side by side
    Stable Diffusion XL      encoder_hidden_states  as above, without T5
                             text_embeds            the second CLIP's embedding of the whole text
                             time_ids               height, width, crop and target size; zeros in place of the first two for the empty text

Encoders are loaded from local safetensors when they are asked for, and are gone when nobody holds them any more.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percepta.interop.folders import NETWORKS, TEXT, VAES, find_folder, read_json, text_part
from percepta.interop.schedules import SamplerDefaults, defaults_of

PIPELINES = {"sd": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline", "sdxl": "StableDiffusionXLPipeline"}
PARTS = {  # what has to be there to read a prompt
    "sd": ("tokenizer", "text_encoder"),
    "sd3": ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
    "sdxl": ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
}
T5_TOKENS = 256  # diffusers' max_sequence_length
READ = (".safetensors", ".json", ".txt", ".model")  # files that decide an embedding
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.xml")
VERSION = 1  # of the embeddings: raise it when the same encoders give others


@dataclass(frozen=True)
class TextSide:
    """Where a pipeline's text encoders and tokenizers lie, and which kind of pipeline reads them."""

    folder: Path
    kind: str  # sd | sd3 | sdxl

    @cached_property
    def index(self) -> Mapping[str, Any]:
        return read_json(self.folder / "model_index.json")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The components that reading a prompt takes."""
        return tuple(name for name in TEXT if not name.startswith(("image", "feature")) and _present(self.index, name))

    @property
    def pipeline(self) -> str:
        """The class of diffusers that makes images of texts with these parts."""
        return PIPELINES[self.kind]

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides an embedding. Weights are read from end to end."""
        total = hashlib.sha256(f"{VERSION} {self.kind} {self._width} {self._empty_is_zero}".encode())
        for part in self.parts:
            for file in sorted(p for p in (self.folder / part).rglob("*") if p.suffix in READ):
                with file.open("rb") as opened:
                    total.update(f"\n{part}/{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}".encode())
        return total.hexdigest()

    @property
    def sampler(self) -> SamplerDefaults:
        """How an export of it samples: flows as their scheduler is set, the others by DDIM on the grid that no pipeline of diffusers changes."""
        if self.kind == "sd3":
            return defaults_of(read_json(self.folder / "scheduler" / "scheduler_config.json"))
        return SamplerDefaults("ddim", spacing="trailing")

    @property
    def _width(self) -> int:
        """The width of the tokens that an SD3 reads."""
        return int(read_json(self.folder / "transformer" / "config.json")["joint_attention_dim"]) if self.kind == "sd3" else 0

    @property
    def _empty_is_zero(self) -> bool:
        return self.kind == "sdxl" and bool(self.index.get("force_zeros_for_empty_prompt", True))

    def open(self, device: torch.device | str = "cpu") -> "PromptEncoder":
        """The encoders on a device, in float32 on a CPU and as they are stored elsewhere."""
        device = torch.device(device)
        dtype = torch.float32 if device.type == "cpu" else None
        loaded = {name: text_part(self.folder / name, self.index[name], dtype) for name in self.parts}
        encoders = {name: part.to(device) if name.startswith("text_encoder") else part for name, part in loaded.items()}
        return PromptEncoder(self.kind, encoders, device, self._width, self._empty_is_zero)

    def copy_to(self, out: Path) -> dict[str, Any]:
        """Everything but network, scheduler and autoencoder, unchanged; returns what model_index.json says of it."""
        mine = {k: v for k, v in self.index.items() if not k.startswith("_") and k not in (*NETWORKS, *VAES, "scheduler")}
        for name in mine:
            if _present(self.index, name):
                safe = list((self.folder / name).glob("*.safetensors"))
                shutil.copytree(
                    self.folder / name, out / name, ignore=shutil.ignore_patterns(*OTHER_WEIGHTS) if safe else None
                )  # links of a cache become files
        return mine


@dataclass(frozen=True)
class PromptEncoder:
    """Loaded encoders: prompts in, one row of each condition per prompt out, on the CPU."""

    kind: str
    parts: Mapping[str, Any]
    device: torch.device
    width: int = 0
    empty_is_zero: bool = False

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        found = {"sd": self._sd, "sd3": self._sd3, "sdxl": self._sdxl}[self.kind](list(prompts))
        if self.empty_is_zero:
            for row, prompt in enumerate(prompts):
                if not prompt:
                    for value in found.values():
                        value[row] = 0
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Those that are longer than the first text encoder reads: their ends are left out."""
        tokenizer = self.parts["tokenizer"]
        lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
        return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > tokenizer.model_max_length]

    def _tokens(self, name: str, prompts: list[str], length: int) -> Any:
        tokens = self.parts[name](prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return tokens.to(self.device)

    def _sd(self, prompts: list[str]) -> dict[str, Tensor]:
        encoder = self.parts["text_encoder"]
        tokens = self._tokens("tokenizer", prompts, self.parts["tokenizer"].model_max_length)
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return {"encoder_hidden_states": encoder(tokens.input_ids, attention_mask=mask)[0]}

    def _clips(self, prompts: list[str], lengths: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Hidden states side by side, and each CLIP's embedding of the whole text."""
        hidden, whole = [], []
        for end, length in zip(("", "_2"), lengths, strict=True):
            ids = self._tokens(f"tokenizer{end}", prompts, length).input_ids
            out = self.parts[f"text_encoder{end}"](ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            whole.append(out[0])
        return torch.cat(hidden, -1), whole

    def _sd3(self, prompts: list[str]) -> dict[str, Tensor]:
        length = self.parts["tokenizer"].model_max_length
        clips, whole = self._clips(prompts, (length, length))
        if "text_encoder_3" in self.parts:
            t5 = self.parts["text_encoder_3"](self._tokens("tokenizer_3", prompts, T5_TOKENS).input_ids)[0]
        else:
            t5 = clips.new_zeros(len(prompts), T5_TOKENS, self.width)
        clips = torch.nn.functional.pad(clips, (0, t5.shape[-1] - clips.shape[-1]))
        return {"encoder_hidden_states": torch.cat([clips, t5], -2), "pooled_projections": torch.cat(whole, -1)}

    def _sdxl(self, prompts: list[str]) -> dict[str, Tensor]:
        lengths = (self.parts["tokenizer"].model_max_length, self.parts["tokenizer_2"].model_max_length)
        clips, whole = self._clips(prompts, lengths)
        return {"encoder_hidden_states": clips, "text_embeds": whole[1]}


def find_text(path: str | Path) -> TextSide | None:
    """The text side of a pipeline or of a run's model; None where there is no text encoder."""
    folder = find_folder(path)
    if (folder / "model" / "model_index.json").is_file():  # a run
        folder = folder / "model"
    if not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json")
    if not _present(index, "text_encoder"):
        return None
    network = next((index[name][1] for name in ("unet", "transformer") if _present(index, name)), "none")
    unet = "sdxl" if _present(index, "text_encoder_2") else "sd"
    kind = {"UNet2DConditionModel": unet, "SD3Transformer2DModel": "sd3"}.get(network)
    if kind is None:
        raise ValueError(
            f"{folder} reads text with the network {network}, which is not known here: Stable Diffusion 1, 2, XL and 3 are "
            "(UNet2DConditionModel, SD3Transformer2DModel)"
        )
    missing = [name for name in PARTS[kind] if not _present(index, name)]
    if missing:
        raise ValueError(f"{folder} is a pipeline of the kind {PIPELINES[kind]} without its {', '.join(missing)}: complete it")
    return TextSide(folder, kind)


def _present(index: Mapping[str, Any], name: str) -> bool:
    value = index.get(name)
    return isinstance(value, list) and len(value) == 2 and bool(value[1])
