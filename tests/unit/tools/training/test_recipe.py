"""Recipes: the shipped ones, and errors in a recipe file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from service.errors import SettingError
from service.tools.data.registry import DATASETS
from service.tools.training.recipe import Recipe, Stage, read_recipe
from service.tools.training.stream import SNIPPETS

RECIPES = sorted((Path(inspect.getfile(Recipe)).parent / "recipes").glob("*.toml"))
SMALLEST = 'dev = ["tnews/dev"]\n[[stages]]\nsteps = 3\n[stages.mixture]\n"tnews/train" = 1\n'


def read(folder: Path, text: str) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return read_recipe(file)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_uses_only_known_data_sets(path: Path) -> None:
    recipe = read_recipe(path)
    taught = [one.by for one in recipe.taught.values()]
    names = {source.partition("/")[0] for source in (*recipe.sources, *recipe.dev, *taught)} - set(recipe.taught)
    assert names - {SNIPPETS} <= set(DATASETS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_does_not_train_on_its_dev_sets(path: Path) -> None:
    recipe = read_recipe(path)
    learned = {*recipe.sources, *(one.by for one in recipe.taught.values())}
    assert not learned & set(recipe.dev)


def test_steps_are_assigned_to_stages_in_order(tmp_path: Path) -> None:
    recipe = read(tmp_path, SMALLEST + '[[stages]]\nsteps = 2\n[stages.mixture]\n"c3/train" = 1\n')
    first, second = recipe.stages
    assert list(recipe.stage_of_steps()) == [first] * 3 + [second] * 2
    assert recipe.num_steps == 5
    assert recipe.sources == ("tnews/train", "c3/train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages = 1 = 2", "not TOML"),
        ("leraning_rate = 1\n" + SMALLEST, "leraning_rate"),
        (SMALLEST.replace("steps = 3", "steps = 0"), r"stages\.0\.steps"),
        ("dev = []\n" + SMALLEST.partition("\n")[2], "dev"),
        ('form = "poem"\n' + SMALLEST, "form"),
    ],
)
def test_the_error_of_a_bad_recipe_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        read_recipe(tmp_path / "none.toml")


def test_a_stage_needs_a_mixture() -> None:
    with pytest.raises(ValueError, match="mixture"):
        Stage(steps=1, mixture={})
