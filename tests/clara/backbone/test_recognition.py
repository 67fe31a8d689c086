"""Walks over a backbone's modules leave out only what cannot matter."""

from torch import nn

from clara.backbone.attention_patterns import evaluating
from clara.backbone.lora import MergingLinear
from clara.backbone.recognition import modules_without_adapters

from .test_merging import new_model


def test_adapters_are_left_out_unless_they_train(tiny_backbone):
    model = new_model(tiny_backbone("llama")).eval()
    every = set(model.backbone.modules())
    layers = [module for module in every if isinstance(module, MergingLinear)]
    within = {part for layer in layers for part in layer.modules() if part is not layer}
    found = modules_without_adapters(model.backbone)
    assert len(found) == len(set(found))
    assert set(found) == every - within
    layers[0].train()
    assert set(modules_without_adapters(model.backbone)) == (every - within) | set(
        layers[0].modules()
    )
    model.train()
    assert set(modules_without_adapters(model.backbone)) == every


def test_a_module_in_two_places_is_found_once_and_a_circle_ends():
    shared, outer = nn.Linear(2, 2), nn.Sequential()
    outer.extend([shared, nn.Sequential(shared)])
    shared.around = outer
    assert len(modules_without_adapters(outer)) == 3


def test_evaluating_reaches_and_restores_every_module(tiny_backbone):
    model = new_model(tiny_backbone("llama")).train()
    model.backbone.base_model.norm.eval()
    before = [module.training for module in model.modules()]
    assert sum(before) == len(before) - 1
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
