"""Pretrained weights that Percepta reads: where each comes from, its hash and its licence. Nothing is downloaded here.

    path = find_weights("lpips_alex_fp32")

A file is looked for in PERCEPTA_WEIGHTS (a folder, or several joined as PATH is), torch hub's cache, and the Hugging Face cache, in this
order, and its sha256 is compared before it is used.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENV = "PERCEPTA_WEIGHTS"


@dataclass(frozen=True)
class Weights:
    """One file. `sha256` may be the first digits only, where that is all its publisher gives (torchvision's file names), and is empty where
    the publisher gives none: whoever uses such a file records the hash it found."""

    name: str
    file: str
    url: str
    sha256: str
    licence: str
    purpose: str
    repo: str | None = None  # a Hugging Face repository that holds the file
    repo_files: tuple[str, ...] = ()  # its names there, the preferred first, where they are not `file`


_TORCHVISION = "https://download.pytorch.org/models/"


def _torchvision(name: str, file: str, purpose: str) -> Weights:
    return Weights(name, file, _TORCHVISION + file, file.rpartition("-")[2].removesuffix(".pth"), "BSD-3-Clause", purpose)


def _clip(name: str, repo: str, purpose: str) -> Weights:
    url = f"https://huggingface.co/{repo}/resolve/main/pytorch_model.bin"
    return Weights(name, f"{name}.bin", url, "", "MIT", purpose, repo, ("model.safetensors", "pytorch_model.bin"))


def _dinov2(letter: str, word: str, purpose: str) -> Weights:
    stem = f"dinov2_vit{letter}14"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{stem}/{stem}_pretrain.pth"
    repo = f"timm/vit_{word}_patch14_dinov2.lvd142m"
    return Weights(stem, f"{stem}_pretrain.pth", url, "", "Apache-2.0", purpose, repo, ("model.safetensors",))


TABLE: tuple[Weights, ...] = (
    Weights(
        "lpips_alex_fp32",
        "lpips_alex_fp32.safetensors",
        "https://github.com/richzhang/PerceptualSimilarity",
        "137fae61e223a0ffeb6b56e2ef8c925a36a106ef8b15d24a234071617b3ed744",
        "BSD-2-Clause, trunk BSD-3-Clause",
        "LPIPS v0.1 on AlexNet",
    ),
    Weights(
        "lpips_squeeze_fp32",
        "lpips_squeeze_fp32.safetensors",
        "https://github.com/richzhang/PerceptualSimilarity",
        "6090f8f626c2d780c19fce5d7e96f016580516a7831b4e1634cfa1afa4e12240",
        "BSD-2-Clause, trunk BSD-3-Clause",
        "LPIPS v0.1 on SqueezeNet",
    ),
    Weights(
        "fid_inception_7a_1280_fp32",
        "fid_inception_7a_1280_fp32.safetensors",
        "https://github.com/wojtekcz/MetalImageRecognition_retrained",
        "d1fb9f7d1acba4e8890d7b5028b5b92448372c97068b55534941e40d095142d1",
        "Apache-2.0 (weights)",
        "FID Inception of 2015 up to Mixed_7a",
    ),
    Weights(
        "fid_inception_full",
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "Apache-2.0",
        "FID Inception of 2015, whole",
    ),
    Weights(
        "fid_inception_full_pt",
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
        "Apache-2.0",
        "FID Inception of 2015, whole, as pytorch-fid names it",
    ),
    Weights(
        "taef2_fp16",
        "taef2_fp16.safetensors",
        "https://github.com/madebyollin/taesd",
        "ba389353bb096ea6ca323a1685d45ff8af8e1994f1c0d6fea810f5c1ef2a0db4",
        "MIT",
        "tiny autoencoder TAEF2, factor 8, 32 channels",
    ),
    Weights(
        "cifar_resnet20",
        "cifar_resnet20-12fca82f.safetensors",
        "https://github.com/akamaster/pytorch_resnet_cifar10",
        "02926273efb1deadb6dc654c7087baea932ef2026d9f854680d6858146d85838",
        "BSD-2-Clause",
        "CIFAR-10 classifier ResNet-20",
    ),
    Weights(
        "cifar_resnet56",
        "cifar_resnet56-4bfd9763.safetensors",
        "https://github.com/akamaster/pytorch_resnet_cifar10",
        "cf29b05e3acebb9dc28868ebd84a604ff452971bb6770f22beaff48708079aee",
        "BSD-2-Clause",
        "CIFAR-10 classifier ResNet-56",
    ),
    _torchvision("vgg16", "vgg16-397923af.pth", "trunk of LPIPS-VGG and of VGG features"),
    _torchvision("vgg19", "vgg19-dcbb9e9d.pth", "trunk of the multi-scale perceptual loss"),
    _torchvision("alexnet", "alexnet-owt-7be5be79.pth", "trunk of LPIPS-AlexNet"),
    Weights(
        "lpips_vgg_heads",
        "lpips_vgg.pth",
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "BSD-2-Clause",
        "calibrated heads of LPIPS v0.1 on VGG16",
    ),
    _clip("clip_vit_b_32", "openai/clip-vit-base-patch32", "CLIP ViT-B/32: CLIP-FD, clean-fid's clip_vit_b_32"),
    _clip("clip_vit_l_14_336", "openai/clip-vit-large-patch14-336", "CLIP ViT-L/14 at 336 px: CMMD"),
    _dinov2("s", "small", "DINOv2 ViT-S/14"),
    _dinov2("b", "base", "DINOv2 ViT-B/14"),
    _dinov2("l", "large", "DINOv2 ViT-L/14: FD-DINOv2"),
    _torchvision("resnet50", "resnet50-0676ba61.pth", "metric function of Cas-DM (V1 weights)"),
    _torchvision("swin_t", "swin_t-704ceda3.pth", "metric function of Cas-DM, Swin-T"),
    _torchvision("convnext_tiny", "convnext_tiny-983f1562.pth", "metric function, ConvNeXt-T"),
    Weights(
        "dists_weights",
        "dists_weights.pt",
        "https://github.com/Lightning-AI/torchmetrics/raw/v1.9.0/src/torchmetrics/functional/image/dists_models/weights.pt",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        "MIT",
        "calibrated weights of DISTS on VGG16",
    ),
)
BY_NAME: dict[str, Weights] = {row.name: row for row in TABLE}


def known_weights(name: str) -> Weights:
    """The row of the table; ValueError with the names that there are."""
    if name not in BY_NAME:
        raise ValueError(f"unknown weights {name!r}; known: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def weight_folders() -> list[Path]:
    """Where weights are looked for, in order, apart from the Hugging Face cache."""
    own = [Path(part).expanduser() for part in os.environ.get(ENV, "").split(os.pathsep) if part]
    hub = Path(os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch")).expanduser()
    return [*own, hub / "hub" / "checkpoints"]


def _candidates(row: Weights) -> Iterator[Path]:
    for folder in weight_folders():
        yield folder / row.file
    if row.repo is not None:
        from huggingface_hub import try_to_load_from_cache

        for name in row.repo_files or (row.file,):
            cached = try_to_load_from_cache(row.repo, name)
            if isinstance(cached, str):
                yield Path(cached)


def find_weights(name: str) -> Path:
    """The file, its hash checked; ValueError in one line that names file, url, sha256 and the folder to put it in."""
    row = known_weights(name)
    for path in _candidates(row):
        if path.is_file():
            found = hash_of_file(path)
            if not found.startswith(row.sha256):
                raise ValueError(
                    f"{path} is not the {row.purpose}: sha256 {found}, expected {row.sha256}; fetch it again from {row.url}"
                )
            return path
    folder = weight_folders()[0]
    raise ValueError(f"weights {name!r} ({row.purpose}) are missing: put {row.file} from {row.url} (sha256 {row.sha256 or 'not published'}) into {folder}"
                     + ("" if os.environ.get(ENV) else f", or set {ENV} to the folder that holds it"))  # fmt: skip


def hash_of_file(path: Path) -> str:
    """The sha256 of a file, computed once as long as its size and time stay."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def has_weights(name: str) -> bool:
    """Whether the file is there; its hash is not compared."""
    return any(path.is_file() for path in _candidates(known_weights(name)))


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
