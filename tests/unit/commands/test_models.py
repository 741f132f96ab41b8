"""The models of the settings: folders with commas in their names, and models of one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.checkpoints.spec import ModelSpec
from service.commands.models import parse_specs
from service.errors import SettingError
from service.settings_sources import load


def specs(*flags: str) -> list[ModelSpec]:
    return parse_specs(load({"models.specs": list(flags)}, environ={}).models)


def test_a_comma_separates_models_unless_it_is_in_the_name_of_a_folder(tmp_path: Path) -> None:
    assert [spec.name for spec in specs("mini,IDEA-CCNL/X", "IDEA-CCNL/Y")] == ["mini", "X", "Y"]
    for name in ("a,b", "新闻, 情感", "a,b,c"):
        (tmp_path / name).mkdir()
        assert specs("mini", f"x={tmp_path}/{name}", "IDEA-CCNL/Y")[1] == ModelSpec("x", f"{tmp_path}/{name}")
        with pytest.raises(SettingError, match=r"it contains ,; give it one: --model '?.*-.*="):
            specs(f"{tmp_path}/{name}")


def test_two_folders_of_a_list_are_not_joined(tmp_path: Path) -> None:
    for name in ("a", "b", f"a,{tmp_path}/b"):
        (tmp_path / name).mkdir(parents=True)
    assert [spec.name for spec in specs(f"{tmp_path}/a,{tmp_path}/b")] == ["a", "b"]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "情感").mkdir()
    with pytest.raises(SettingError, match="two models are called 情感; rename one with --model NAME=SOURCE"):
        specs(f"{tmp_path}/情感", "情感=mini")


def test_labels_name_a_model_with_a_chinese_name() -> None:
    settings = load({"models.specs": ["情感 分类=mini"], "models.labels": ["情感 分类=负面,正面"]}, environ={})
    assert parse_specs(settings.models) == [ModelSpec("情感 分类", "mini")]
