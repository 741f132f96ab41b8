"""Parts of a training run that need no training: blending of weights, and the classes of a head."""

from __future__ import annotations

import pytest
import torch
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from service.errors import SettingError
from service.tools.data.converters import Example
from service.tools.training.run import _classes
from service.tools.training.stream import Corpus
from service.tools.training.trainer import blend

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
