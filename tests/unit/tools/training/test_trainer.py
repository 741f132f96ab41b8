"""The trainer: padding, the 4-D attention mask and the loss, each compared with its formula."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices
from service.tools.training.stream import IGNORED, Row
from service.tools.training.trainer import HIDDEN, attention_mask, choice_loss, collate
from tests.checkpoints import make_checkpoint

CHOICES = [Choice(("好", "不好"), ("天气",)), Choice(("是", "非", "都是"), ("我们去学校",), "去吗")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("collate") / "model")
    model = TextModel.load(describe(folder, "model"))
    return [Row(encoding, answer) for answer, encoding in enumerate(encode_choices(model, CHOICES, "right"))]


def test_attention_mask_hides_only_other_options_and_padding(rows: list[Row]) -> None:
    encodings = [row.encoding for row in rows]
    length = max(encoding.num_tokens for encoding in encodings)
    mask = attention_mask(encodings, length)
    assert mask.shape == (2, 1, length, length)
    for index, encoding in enumerate(encodings):
        block_of = {token: number for number, (a, b) in enumerate(encoding.blocks) for token in range(a, b)}
        for query in range(encoding.num_tokens):
            for key in range(length):
                apart = query in block_of and key in block_of and block_of[query] != block_of[key]
                is_hidden = key >= encoding.num_tokens or apart
                assert mask[index, 0, query, key] == (HIDDEN if is_hidden else 0.0)


def test_collate_pads_rows_and_lists_option_positions(rows: list[Row]) -> None:
    batch = collate(rows)
    short = rows[0].encoding.num_tokens
    assert batch["input_ids"][0, :short].tolist() == rows[0].encoding.ids.tolist()
    assert batch["input_ids"][0, short:].sum() == 0
    assert batch["option_counts"].tolist() == [2, 3]
    assert batch["option_positions"][0, :2].tolist() == list(rows[0].encoding.readout.positions)
    assert batch["answers"].tolist() == [0, 1]


def test_choice_loss_is_cross_entropy_of_yes_plus_half_the_loss_per_option(rows: list[Row]) -> None:
    batch = collate(rows)
    yes_no = torch.tensor([[[2.0, 0.5], [1.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [1.0, -1.0], [0.5, 2.0]]])
    first = math.log(1 + math.exp(1.0 - 2.0))
    second = math.log(math.exp(0.0) + math.exp(1.0) + math.exp(0.5)) - 1.0
    wanted = [(1.5, 1), (1.0, 0), (0.0, 0), (2.0, 1), (-1.5, 0)]
    alone = sum(math.log(1 + math.exp(-margin if yes else margin)) for margin, yes in wanted) / 5
    assert choice_loss(yes_no, batch).item() == pytest.approx((first + second) / 2 + 0.5 * alone, abs=1e-5)


def test_rows_without_an_answer_are_not_in_the_choice_loss(rows: list[Row]) -> None:
    batch = collate([rows[0], Row(rows[1].encoding, IGNORED)])
    yes_no = torch.zeros(2, 3, 2)
    chosen = choice_loss(yes_no, batch).item() - 0.5 * math.log(2)
    assert chosen == pytest.approx(math.log(2), abs=1e-5)
