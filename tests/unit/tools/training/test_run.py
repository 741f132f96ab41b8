"""Parts of a training run that need no training: blending of weights, and the classes of a head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from service.checkpoints.checkpoint import describe
from service.errors import SettingError
from service.tools.data.converters import Example
from service.tools.training.recipe import Recipe, Stage
from service.tools.training.run import _classes, train
from service.tools.training.stream import Corpus
from service.tools.training.trainer import blend
from tests.checkpoints import make_checkpoint

TINY = MegatronBertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_blend_interpolates_every_weight_with_its_start(share: float) -> None:
    network = MegatronBertForMaskedLM(TINY)
    before = {name: torch.zeros_like(weights) for name, weights in network.named_parameters()}
    trained = {name: weights.detach().clone() for name, weights in network.named_parameters()}
    blend(network, before, share)
    for name, weights in network.named_parameters():
        torch.testing.assert_close(weights.detach(), share * trained[name])


def test_a_head_needs_one_list_of_classes() -> None:
    news = Example("classify", ("好",), ("体育", "财经"), 0)
    other = Example("classify", ("好",), ("好评", "差评"), 0)
    assert _classes(Corpus({"news": [news]}, {}, [])) == ("classify", ("体育", "财经"))
    with pytest.raises(SettingError, match="one list of classes"):
        _classes(Corpus({"news": [news], "other": [other]}, {}, []))


def test_a_model_that_is_not_trained_is_refused_before_data_is_read(tmp_path: Path) -> None:
    start = describe(make_checkpoint(tmp_path / "xlmr", family="xlm-roberta", num_layers=1), "xlmr")
    recipe = Recipe(stages=(Stage(steps=1, mixture={"tnews/train": 1}),), dev=("tnews/dev",))
    with pytest.raises(SettingError, match="model xlmr: xlm-roberta is not trained here; wanted megatron-bert or bert"):
        train(recipe, tmp_path / "no-data", tmp_path / "out", start)
    packed = replace(describe(make_checkpoint(tmp_path / "bert", family="bert", num_layers=1), "b"), are_packed=True)
    with pytest.raises(SettingError, match="model b: its weights are 4-bit blocks, which are not trained"):
        train(recipe, tmp_path / "no-data", tmp_path / "out", packed)
