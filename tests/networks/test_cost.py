"""What a network costs: both networks of a cascade count, and arithmetic is that of the layers."""

import pytest
import torch

from percepta.formulation import Denoiser, Formulation
from percepta.networks import CascadeSpec, build, build_cascade, cost_of
from percepta.path import Cosine


def test_a_cascade_costs_two_networks():
    one = cost_of(Denoiser(build("unet-pocket", size=16), Formulation(Cosine())), (3, 16, 16))
    two = cost_of(Denoiser(build_cascade(CascadeSpec(), Cosine(), size=16), Formulation(Cosine(), "clean")), (3, 16, 16))
    same = cost_of(Denoiser(build("unet-pocket", size=16, num_classes=4), Formulation(Cosine())), (3, 16, 16))
    assert one.parameters == sum(p.numel() for p in build("unet-pocket", size=16).parameters())
    assert two.parameters == pytest.approx(2 * one.parameters, rel=1e-3) and two.gflops == pytest.approx(2 * one.gflops, rel=1e-2)
    assert same.gflops == pytest.approx(one.gflops, rel=1e-3), "labels are looked up"
    assert cost_of(Denoiser(build("unet-pocket", size=32), Formulation(Cosine())), (3, 32, 32)).gflops > 3.9 * one.gflops


def test_arithmetic_is_that_of_the_layers():
    network = build("unet-pocket", size=16)
    counted = []
    hooks = [
        layer.register_forward_hook(lambda m, given, out: counted.append(2 * out.numel() * m.weight[0].numel()))
        for layer in network.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    found = cost_of(Denoiser(network, Formulation(Cosine())), (3, 16, 16))
    for hook in hooks:
        hook.remove()
    assert found.gflops == pytest.approx(sum(counted) / 1e9, rel=1e-6)
