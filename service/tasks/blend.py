"""The blend: labels scored by a choice model and an embedding model together, and the constants that it needs.

    score(label) = choice_weight * confidence ^ choice_power * log p(label)
                 + (cos(text, label) - prior_weight * cos(background, label)) / temperature

The first line is the choice model (UniMC): `confidence` is the lead of the most probable label over the second one, by
their probabilities of yes against no, so that the line counts little where the model does not know the labels. The
second line is the embedding model: the vector of a label is the mean over the templates, and `background`, the mean
vector of many texts, tells how close the label is to any text. The probabilities are the softmax of the scores. A model
that is not there, or cannot tell the labels apart, has no line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

import service
from service.domain import FloatArray
from service.errors import SettingError
from service.tasks.scores import sigmoid, softmax

Numbers = NDArray[np.float64]
Indexes = NDArray[np.int64]
MAX_TEMPLATES = 32
MAX_SAME = 256
"""Of more labels, some are always different; to compare every two of them takes too long."""
SHORTLIST = 32
SHIPPED_BLEND = Path(service.__file__).parent / "models" / "blend.json"


@dataclass(frozen=True, slots=True)
class Logistic:
    """A probability from a cosine and the logit of a choice: sigmoid(bias + choice * logit + cosine * cos)."""

    bias: float
    cosine: float
    choice: float = 0.0

    def probabilities(self, cosines: Numbers, choice_logits: Numbers | None = None) -> FloatArray:
        logits = self.bias + self.cosine * cosines
        return sigmoid(logits if choice_logits is None else logits + self.choice * choice_logits)


@dataclass(frozen=True, slots=True)
class Logistics:
    """The constants of a blend, and those of the embedding model alone."""

    blend: Logistic
    alone: Logistic

    def of_both(self, cosines: Numbers, choice_logits: Numbers) -> FloatArray:
        return self.blend.probabilities(cosines, choice_logits)

    def of_cosines(self, cosines: Numbers) -> FloatArray:
        return self.alone.probabilities(cosines)


@dataclass(frozen=True, slots=True)
class ExampleConstants:
    """How much the examples of labels change their scores (`tasks.examples`).

    `ridge` holds the labels back, `curvature` the directions in which examples differ, `saturation` the weight of all
    examples of a label. `prior_right` and `prior_wrong` are how many right and wrong examples are assumed beforehand.
    """

    curvature: float
    ridge: float
    saturation: float
    prior_right: float
    prior_wrong: float


EXAMPLE_CONSTANTS = ExampleConstants(curvature=0.3, ridge=0.015, saturation=6.0, prior_right=4.0, prior_wrong=1.0)
"""Those of a file without them."""


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """The constants of the blend. `model` is the name or source of the embedding model that they were fitted for.

    `background` has its dimensions, and is None where the embedding model is another one: then the mean over the labels
    takes the place of the prior. `similarity` compares two texts by their cosine, `multi_label` scores each label by
    itself, by its centred cosine over the temperature. Of more than `shortlist` labels, the choice model reads the best
    ones by the vectors only. Labels of which every two have a cosine of at least
    `same_cosine`, such as a statement and its negation, are the same to the embedding model.
    """

    model: str
    templates: tuple[str, ...]
    temperature: float
    choice_weight: float
    choice_power: float
    prior_weight: float
    same_cosine: float
    multi_label: Logistics
    similarity: Logistics | None = None
    background: FloatArray | None = None
    examples: ExampleConstants = EXAMPLE_CONSTANTS
    shortlist: int = SHORTLIST

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises SettingError, with the file and the field."""
        try:
            read = _File.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise SettingError(f"models.blend: {path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            [first, *_] = error.errors(include_url=False, include_input=False)
            field = ".".join(map(str, first["loc"])) or "the file"
            raise SettingError(f"models.blend: {path}: {field}: {first['msg']}") from error
        except ValueError as error:
            raise SettingError(f"models.blend: {path}: is not JSON ({error})") from error
        return cls(
            model=read.model,
            templates=tuple(read.templates),
            temperature=read.temperature,
            choice_weight=read.choice_weight,
            choice_power=read.choice_power,
            prior_weight=read.prior_weight,
            same_cosine=read.same_cosine,
            multi_label=read.multi_label.logistics(),
            similarity=read.similarity.logistics() if read.similarity else None,
            background=np.asarray(read.background, dtype=np.float32) if read.background else None,
            examples=ExampleConstants(**read.examples.model_dump()),
            shortlist=read.shortlist,
        )

    def fit_to(self, names: tuple[str, ...], dimensions: int) -> Blend:
        """The constants for the embedding model of these names (its name, its source): what holds for the fitted model
        alone is left out for any other.

        Raises:
            SettingError: it is the fitted model, with vectors of another size.
        """
        if self.model not in names:
            return replace(self, background=None, similarity=None, same_cosine=1.0)
        if self.background is not None and len(self.background) != dimensions:
            raise SettingError(
                f"models.blend: background: has {len(self.background)} numbers; the vectors of {self.model} have"
                f" {dimensions}; fit the file again"
            )
        return self


def mean_over_templates(vectors: Numbers, num_templates: int) -> Numbers:
    """The vectors of the labels, shape [num_labels, dimensions], from those of all templates of the first label, then
    those of the second, and so on."""
    return np.asarray(vectors.reshape(-1, num_templates, vectors.shape[-1]).mean(axis=1))


def centred_cosines(texts: Numbers, labels: Numbers, blend: Blend) -> Numbers:
    """How much closer each text is to each label than any text is, shape [num_texts, num_labels]."""
    cosines: Numbers = texts @ labels.T
    if blend.background is None:
        return np.asarray(cosines - cosines.mean(axis=1, keepdims=True))
    return np.asarray(cosines - blend.prior_weight * (labels @ blend.background.astype(np.float64)))


def are_same(labels: Numbers, blend: Blend) -> bool:
    """Whether the embedding model cannot tell any two of these labels apart; more than MAX_SAME it can."""
    if len(labels) > MAX_SAME:
        return False
    lengths = np.linalg.norm(labels, axis=1)
    cosines = (labels @ labels.T) / np.maximum(np.outer(lengths, lengths), np.finfo(np.float64).tiny)
    return bool(cosines.min() >= blend.same_cosine)


def label_probabilities(
    blend: Blend | None, centred: Numbers | None, yes_no: Numbers | None, read: Indexes | None = None
) -> FloatArray:
    """The probabilities of the labels of one text, which sum to 1.

    `centred` are its centred cosines, `yes_no` the logits of yes and no of the choice model for the labels `read`,
    shape [num_read, 2], None: for all; one of the two may be None. Labels that the choice model did not read have the
    smallest of its terms.
    """
    return softmax(np.asarray(label_logits(blend, centred, yes_no, read), dtype=np.float32))


def label_logits(
    blend: Blend | None, centred: Numbers | None, yes_no: Numbers | None, read: Indexes | None = None
) -> Numbers:
    """The numbers whose softmax is the probabilities of the labels; see `label_probabilities`."""
    if centred is None or blend is None:
        assert yes_no is not None, "one of the models scores the labels"
        return yes_no[:, 0] if read is None else np.asarray(yes_no[np.argsort(read), 0])
    scores = centred / blend.temperature
    if yes_no is not None and len(yes_no) > 1:
        weight = blend.choice_weight * _lead(yes_no) ** blend.choice_power
        scores = scores + weight * fill(_log_softmax(yes_no[:, 0]), read, len(centred))
    return np.asarray(scores)


def fill(terms: Numbers, read: Indexes | None, num_labels: int) -> Numbers:
    """A number for each label: `terms` for the labels `read`, the smallest of them for the others."""
    if read is None:
        return terms
    filled = np.full(num_labels, terms.min())
    filled[read] = terms
    return filled


def _lead(yes_no: Numbers) -> float:
    """How much more probable the most probable label is than the second one, 0 to 1."""
    second, first = np.sort(sigmoid(yes_no[:, 0] - yes_no[:, 1]))[-2:]
    return float(first - second)


def independent_probabilities(
    blend: Blend | None, centred: Numbers | None, yes_no: Numbers | None, read: Indexes | None = None
) -> FloatArray:
    """The probability of each label by itself; the arguments are as in `label_probabilities`."""
    if centred is None or blend is None:
        assert yes_no is not None, "one of the models scores the labels"
        logits = yes_no[:, 0] - yes_no[:, 1]
        return sigmoid(logits if read is None else logits[np.argsort(read)])
    scaled = centred / blend.temperature
    if yes_no is None:
        return blend.multi_label.of_cosines(scaled)
    return blend.multi_label.of_both(scaled, fill(yes_no[:, 0] - yes_no[:, 1], read, len(scaled)))


def _log_softmax(logits: Numbers) -> Numbers:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


# the file


def _check_template(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("must contain {} once, where the label goes")
    return template


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Template = Annotated[str, AfterValidator(_check_template)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Alone(_Part):
    bias: Finite
    cosine: NotNegative


class _Logistics(_Part):
    bias: Finite
    choice: NotNegative
    cosine: NotNegative
    alone: _Alone

    def logistics(self) -> Logistics:
        return Logistics(Logistic(self.bias, self.cosine, self.choice), Logistic(self.alone.bias, self.alone.cosine))


class _Examples(_Part):
    curvature: Positive = EXAMPLE_CONSTANTS.curvature
    ridge: Positive = EXAMPLE_CONSTANTS.ridge
    saturation: Positive = EXAMPLE_CONSTANTS.saturation
    prior_right: Positive = EXAMPLE_CONSTANTS.prior_right
    prior_wrong: Positive = EXAMPLE_CONSTANTS.prior_wrong


class _File(_Part):
    """The file of `models.blend`."""

    version: Literal[1]
    model: str
    templates: Annotated[list[Template], Field(min_length=1, max_length=MAX_TEMPLATES)]
    temperature: Positive
    choice_weight: NotNegative
    choice_power: NotNegative
    prior_weight: NotNegative
    same_cosine: Annotated[float, Field(ge=-1, le=1)] = 1.0
    multi_label: _Logistics
    similarity: _Logistics | None = None
    background: list[Finite] | None = None
    examples: _Examples = _Examples()
    shortlist: Annotated[int, Field(ge=2, le=MAX_SAME)] = SHORTLIST
