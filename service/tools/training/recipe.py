"""Training recipes: the start, the stages and the optimizer of a run, read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingError

Form = Literal["choice", "head"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fresh(_Strict):
    """The shape of a new model, whose word embeddings are counted from the corpus."""

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    ffn_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_positions: int = Field(512, gt=0)
    matching_layers: int = Field(
        2, ge=0, description="number of first layers whose heads start by attending to similar tokens"
    )


class Optimizer(_Strict):
    learning_rate: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(100, ge=0)
    decay_steps: int = Field(
        0, ge=0, description="number of last steps in which the learning rate falls to 0; 0: all steps"
    )
    tokens_per_batch: int = Field(4096, gt=0)
    batches_per_step: int = Field(1, gt=0, description="gradients are averaged over them; divided among the processes")
    rows_per_batch: int = Field(0, ge=0, description="most rows per batch; 0: as many as the tokens allow")
    bf16: bool = True


class TeacherLabels(_Strict):
    """Plain texts, labelled by a naive Bayes teacher that has learned from a labelled data set."""

    by: str = Field(description="the labelled data set, named as in a mixture")
    file: str = Field(description="the file with the texts to label")
    keep: float = Field(
        0.6, gt=0, le=1, description="share of the texts that is kept: those of which the teacher is surest"
    )


class Stage(_Strict):
    """Training steps on one mixture; `mixture` maps "name/split" of a data set to its share of the examples."""

    steps: int = Field(gt=0)
    mixture: dict[str, float] = Field(min_length=1)
    masked_texts: float = Field(0.0, ge=0, le=1, description="share of rows that are plain masked text")
    mask_rate: float = Field(
        0.0, ge=0, lt=1, description="share of text tokens that is masked, in addition to the choice loss"
    )
    crops: dict[str, float] = Field({}, description="by source: share of its texts that is cut to a random window")


class Recipe(_Strict):
    """`wordings` has alternative wordings of a data set's options; one is drawn for every example."""

    seed: int = 0
    form: Form = "choice"
    max_length: int = Field(128, gt=8, le=512)
    max_options: int = Field(0, ge=0, description="most options per example, including the answer; 0: all")
    dropout: float = Field(0.1, ge=0, lt=1)
    keep: Literal["best", "last"] = Field("best", description="the model that is written; best: by mean dev accuracy")
    blend: float = Field(
        1.0, gt=0, le=1, description="share of the trained weights; the rest is from the start of the last stage"
    )
    evaluate_every: int = Field(500, gt=0)
    evaluate_limit: int = Field(400, gt=0, description="examples of each dev set in an evaluation during training")
    fresh: Fresh | None = None
    optimizer: Optimizer = Optimizer()
    stages: tuple[Stage, ...] = Field(min_length=1)
    dev: tuple[str, ...] = Field(min_length=1)
    texts: tuple[str, ...] = Field((), description="files with plain texts, for vocabulary, embeddings and masking")
    taught: dict[str, TeacherLabels] = Field({}, description="further sources for mixtures, by name")
    wordings: dict[str, tuple[tuple[str, ...], ...]] = {}

    @property
    def num_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def last_stage_from(self) -> int:
        """The step at which the last stage starts."""
        return self.num_steps - self.stages[-1].steps

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct data sets of all stages."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.mixture))

    def stage_of_steps(self) -> Iterator[Stage]:
        for stage in self.stages:
            for _ in range(stage.steps):
                yield stage


def read_recipe(path: Path) -> Recipe:
    """
    Raises:
        SettingError: the file does not exist, is not TOML, or has an unknown key or a bad value.
    """
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
