"""The model that all servers serve: a MegatronBert classifier of random numbers, 6 layers, 384 wide, 21,128 words; and
larger ones of the same kind.

Its vocabulary has the size of the published Chinese ones and holds Unicode's ideographs. To a server it differs from a
trained model in its answers only.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import MegatronBertForSequenceClassification

from benchmarks.engine.models import SHAPES, config_of, vocabulary
from service.checkpoints.shape import Shape

VOCAB_SIZE = 21_128
LABELS = ("财经", "体育", "娱乐", "科技")
SEED = 7


def make_checkpoint(folder: Path, shape: Shape = SHAPES["small"]) -> Path:
    """Writes the checkpoint where there is none; the same numbers every time."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    config = config_of(
        shape,
        VOCAB_SIZE,
        initializer_range=0.05,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = MegatronBertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(8)  # scores that differ: by rights, all labels would be about as likely
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary(VOCAB_SIZE)) + "\n", encoding="utf-8")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "done").touch()
    return folder
