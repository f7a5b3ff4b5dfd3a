"""What tests of whole runs share: processes from the zygote, the small network, and what a run left."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@dataclass
class Process:
    """A child of the zygote."""

    zygote: "Zygote"
    pid: int
    out: Path
    err: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int | None:
        """The exit code; None, and it is killed, after `timeout` seconds."""
        return self.zygote.ask({"wait": self.pid, "timeout": timeout})

    def ended(self) -> bool:
        """Whether it is dead and waits to be collected, where the system tells."""
        status = Path(f"/proc/{self.pid}/stat")
        return status.is_file() and status.read_text().rpartition(")")[2].split()[0] == "Z"

    def until(self, there: Callable[[], bool], timeout: float = 60) -> None:
        """Wait for something that the process does; its messages are the error if it does not."""
        end = time.monotonic() + timeout
        while not there():
            if self.ended() or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it did not come in {timeout} s:\n{self.err.read_text()}")
            time.sleep(0.01)


@dataclass
class Zygote:
    folder: Path
    count: int = 0
    started: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def ask(self, job: Mapping) -> int | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, code: str, **env: str) -> Process:
        """Run code in a process of its own."""
        self.count += 1
        out, err = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        pid = self.ask({"code": textwrap.dedent(code), "env": env, "out": str(out), "err": str(err)})
        assert pid is not None
        return Process(self, pid, out, err)

    def command(self, args: Sequence[str], before: str = "", **env: str) -> Process:
        """`percepta ARGS`, after some code that prepares the process."""
        end = f"from percepta.cli import main\nraise SystemExit(main({[str(a) for a in args]!r}))"
        return self.start(textwrap.dedent(before) + "\n" + end, **env)

    def ranks(self, size: int, code: str, port: int, **env: str) -> list[Process]:
        """The same code on several ranks that find each other as under torchrun."""
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        return [self.start(code, RANK=str(k), LOCAL_RANK=str(k), **common, **env) for k in range(size)]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def small_network(folder: Path, dropout: float = 0.0, classes: int | None = None) -> str:
    """A U-Net for 8 x 8 images."""
    import torch
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DModel(
            sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, dropout=dropout, attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        ).save_pretrained(folder)  # fmt: skip
    return str(folder)


FLAGS: dict[str, object] = {
    "data": "shapes:length=20", "conditional": "no", "size": 8, "batch": 4, "steps": 6, "checkpoint_every": 2, "log_every": 1,
    "sample_every": 0, "sample_num": 2, "sample_steps": 2, "device": "cpu", "lr": 1e-3,
}  # fmt: skip


def small_autoencoder():
    """Images to latents of 3 channels and half the side, of about unit deviation."""
    import torch
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=down, up_block_types=up, block_out_channels=(4, 8), norm_num_groups=2, latent_channels=3,
            mid_block_add_attention=False, scaling_factor=1.0, sample_size=16,
        )  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """The smallest run there is."""

    network: str

    @property
    def pipeline(self) -> str:
        """The network in a DDPMPipeline, for what starts from a trained one."""
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        folder = Path(f"{self.network}-pipeline")
        if not folder.is_dir():
            DDPMPipeline(UNet2DModel.from_pretrained(self.network), DDPMScheduler()).save_pretrained(folder)
        return str(folder)

    @property
    def vae(self) -> str:
        """An autoencoder whose latents the network reads."""
        folder = Path(f"{self.network}-vae")
        if not folder.is_dir():
            small_autoencoder().save_pretrained(folder)
        return str(folder)

    def flags(self, out: Path, **changed: object) -> list[str]:
        """As the command line has them; True is a switch."""
        values = {**FLAGS, "network": self.network, "out": out, **changed}
        words = [(f"--{k.replace('_', '-')}", v) for k, v in values.items() if v is not None]
        return [word for flag, v in words for word in ((flag,) if v is True else (flag, str(v)))]


def digest(run: Path) -> dict[str, str]:
    """sha256 of all that must not depend on how often a run was interrupted."""
    kept = {".safetensors", ".png", ".json", ".jsonl"}
    files = [
        p for p in sorted(run.rglob("*")) if p.is_file() and p.suffix in kept and p.name not in ("timing.jsonl", "config.json")
    ]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
