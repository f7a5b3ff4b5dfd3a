"""Adapters on two ranks are those of one process, and so are the folders that come out."""

import pytest
import torch
from processes import free_port, names
from safetensors.torch import load_file


@pytest.mark.parametrize("method", ["lora", "diffit"])
def test_two_ranks_train_the_adapter_of_one(zygote, tiny, tmp_path, method):
    # plain gradient steps would say more than Adam's, whose first ones amplify the last digits of small gradients: hence the mean
    flags = {"init": tiny.pipeline, "network": None, "peft": method, "steps": 2, "ema": "none", "clip": None, "lr": 1e-2}
    spoken = {name: ["train", "ddpm", *tiny.flags(tmp_path / name, **flags)] for name in ("one", "two")}
    code = {name: f"from percepta.cli import main\nraise SystemExit(main({args!r}))" for name, args in spoken.items()}
    for process in [zygote.start(code["one"]), *zygote.ranks(2, code["two"], free_port())]:
        assert process.wait(120) == 0, process.err.read_text()
    assert names(tmp_path / "one") == names(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    gap = torch.cat([(two[k] - x).abs().flatten() for k, x in one.items()])
    assert gap.mean() < 1e-5
    assert gap.max() < 2e-3
    moved = {k: x - 1 if k.endswith(".gamma") else x for k, x in one.items() if "lora_B" in k or k.endswith(".gamma")}
    assert sum(float(x.abs().sum()) for x in moved.values()) > 0
