"""A training recipe: what to start from, what to learn in which order, and how. Read from TOML; knows no torch."""

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
    """The shape of a model that starts from nothing but word embeddings counted from the corpus."""

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    ffn_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_positions: int = Field(512, gt=0)
    matching_layers: int = Field(2, ge=0, description="first layers whose heads begin by attending to similar tokens")


class Optimizer(_Strict):
    learning_rate: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(100, ge=0)
    decay_steps: int = Field(
        0, ge=0, description="the last steps, over which the rate falls to nothing; 0: all of them"
    )
    tokens_per_batch: int = Field(4096, gt=0)
    batches_per_step: int = Field(1, gt=0, description="averaged over; shared out where several processes train")
    rows_per_batch: int = Field(0, ge=0, description="at most so many rows a batch; 0: as many as the tokens allow")
    bf16: bool = True


class Taught(_Strict):
    """Plain texts labelled by a simple teacher that has learned from a labelled data set."""

    by: str = Field(description="the labelled data set, as in a mixture")
    file: str = Field(description="the file whose strings are labelled")
    keep: float = Field(0.6, gt=0, le=1, description="share of the texts, those of which the teacher is surest")


class Stage(_Strict):
    """A stretch of training on one mixture; `mixture` maps "name/split" of a data set to its share of examples."""

    steps: int = Field(gt=0)
    mixture: dict[str, float] = Field(min_length=1)
    masked_texts: float = Field(0.0, ge=0, le=1, description="share of rows that are plain masked text")
    mask_rate: float = Field(0.0, ge=0, lt=1, description="share of text tokens masked beside the choice loss")
    crops: dict[str, float] = Field({}, description="by source: share of its texts cut to a window of themselves")


class Recipe(_Strict):
    """`wordings` gives other ways to say the options of a data set; one is drawn for every example."""

    seed: int = 0
    form: Form = "choice"
    max_length: int = Field(128, gt=8, le=512)
    max_options: int = Field(0, ge=0, description="options drawn per example, the answer among them; 0: all")
    dropout: float = Field(0.1, ge=0, lt=1)
    keep: Literal["best", "last"] = Field("best", description="which model is written, by mean dev accuracy")
    blend: float = Field(
        1.0, gt=0, le=1, description="share of the trained weights; the rest are those that the last stage began with"
    )
    evaluate_every: int = Field(500, gt=0)
    evaluate_limit: int = Field(400, gt=0, description="examples of each dev set while training")
    fresh: Fresh | None = None
    optimizer: Optimizer = Optimizer()
    stages: tuple[Stage, ...] = Field(min_length=1)
    dev: tuple[str, ...] = Field(min_length=1)
    texts: tuple[str, ...] = Field(
        (), description="files whose strings are plain text: vocabulary, embeddings, masking"
    )
    taught: dict[str, Taught] = Field({}, description="more sources for mixtures, by a name of their own")
    wordings: dict[str, tuple[tuple[str, ...], ...]] = {}

    @property
    def num_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def last_stage_from(self) -> int:
        """The step at which the last stage begins."""
        return self.num_steps - self.stages[-1].steps

    @property
    def sources(self) -> tuple[str, ...]:
        """Every data set of any stage, once."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.mixture))

    def stage_of_steps(self) -> Iterator[Stage]:
        for stage in self.stages:
            for _ in range(stage.steps):
                yield stage


def read_recipe(path: Path) -> Recipe:
    """
    Raises:
        SettingError: no such file, not TOML, or a key that is unknown or has a bad value.
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
