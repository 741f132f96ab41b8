"""Field types of request bodies: their validation, their error messages and their JSON Schema.

The limits are settings, which are passed through pydantic's validation context.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.settings import Server
from service.tasks.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from service.tasks.labels import Label

MAX_FIELDS = 32
MAX_TOP_K = 1000
DEFAULT_TOP_K = 20
"""Of a classification."""
MAX_SEPARATOR_CHARS = 8
MAX_PROMPT_CHARS = 2000
"""It is joined with each text of a request, so it must not multiply the request's memory."""
MAX_SPANS = 100
MAX_ANSWER_TOKENS = 256
MAX_STRIDE = 1000
MAX_THRESHOLD = 1000.0
NOT_BLANK = {"pattern": r"\S"}
DIFFERENT = {"uniqueItems": True}


def _limits(info: ValidationInfo) -> Server:
    return info.context if isinstance(info.context, Server) else Server()


def _error(message: str) -> PydanticCustomError:
    # As context, not as the template, because a message may contain braces.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def _check_text(text: str, info: ValidationInfo) -> str:
    limit = _limits(info).max_chars
    if not text or text.isspace():
        raise _error("must not be empty")
    if len(text) > limit:
        raise _error(f"has {len(text)} characters; at most {limit} are allowed")
    return text


def _check_list(value: object, limit: int, noun: str) -> list[Any]:
    if not isinstance(value, list):
        raise _error("must be a list")
    if not value:
        raise _error(f"must have at least one {noun}")
    if len(value) > limit:
        raise _error(f"has {len(value)} {noun}s; at most {limit} are allowed")
    return value


def check_inputs(value: object, info: ValidationInfo) -> list[Any]:
    return _check_list(value, _limits(info).max_inputs, "input")


def _wrap_inputs(value: object, info: ValidationInfo) -> list[Any]:
    if not isinstance(value, str | list):
        raise _error("must be a string or a list")
    return check_inputs([value] if isinstance(value, str) else value, info)


def _wrap_texts_or_ids(value: object, info: ValidationInfo) -> list[Any]:
    """Texts, or lists of token ids; one text and one list of ids become a list."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    if not isinstance(value, list):
        raise _error("must be a string, a list of strings, a list of token ids, or a list of such lists")
    for index, one in enumerate(check_inputs(value, info)):
        if isinstance(value[0], str) and isinstance(one, str):
            try:
                _check_text(one, info)
            except PydanticCustomError as error:
                raise _error(f"entry {index} {error.message()}") from None
        elif not (isinstance(value[0], list) and isinstance(one, list) and one and all(map(_is_id, one))):
            raise _error(f"entry {index} must be {'a string' if isinstance(value[0], str) else 'a list of token ids'}")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrap_text(value: object) -> object:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise _error("must be a string, or an object with text and text_pair")
    return value


def _check_pair(value: object) -> object:
    if not isinstance(value, list) or len(value) != 2:
        raise _error("must be a list of two texts")
    return value


def _check_names(value: object, info: ValidationInfo) -> list[Any]:
    return _check_different(_check_list(value, _limits(info).max_labels, "choice"))


def _check_different(names: list[Any]) -> list[Any]:
    first: dict[str, int] = {}
    for index, given in enumerate(names):
        name = given.get("name") if isinstance(given, dict) else given
        if isinstance(name, str) and first.setdefault(name.strip(), index) != index:
            raise _error(f"entry {index} repeats entry {first[name.strip()]}")
    return names


def _check_inline_labels(value: object, info: ValidationInfo) -> list[Any]:
    limit = _limits(info).max_inline_labels
    if isinstance(value, list) and len(value) > limit:
        raise _error(
            f"has {len(value)} labels; at most {limit} are allowed in a request;"
            " store more as a label set (PUT /v1/label-sets/NAME) and send its name as label_set"
        )
    return _check_labels(value, limit, info)


def _check_set_labels(value: object, info: ValidationInfo) -> list[Any]:
    return _check_labels(value, _limits(info).max_set_labels, info)


def _check_labels(value: object, limit: int, info: ValidationInfo) -> list[Any]:
    labels = _check_different(_check_list(value, limit, "label"))
    num_examples = 0
    for label in labels:
        if isinstance(label, dict) and isinstance(examples := label.get("examples"), list):
            num_examples += len(examples)
    if num_examples > limit:
        raise _error(f"has {num_examples} examples in all; at most {limit} are allowed")
    return labels


def _read_label(value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return _check_text(value, info)
    if not isinstance(value, dict):
        raise _error("must be a string, or an object with name, description and examples")
    return read(value)


def _check_about(text: str, info: ValidationInfo) -> str:
    limit = _limits(info).max_example_chars
    if len(text) > limit:
        raise _error(f"has {len(text)} characters; at most {limit} are allowed in a label's description or example")
    return _check_text(text, info)


def _check_examples(value: object, info: ValidationInfo) -> list[Any]:
    return _check_list(value, _limits(info).max_label_examples, "example")


def _to_int(value: object) -> object:
    """Converts a float without a fraction: JSON has one type of number, and clients may write 5 as 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_timeout(milliseconds: int, info: ValidationInfo) -> int:
    limit = _limits(info).max_timeout_ms
    if not 1 <= milliseconds <= limit:
        raise _error(f"must be from 1 to {limit}")
    return milliseconds


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: object) -> object:
        """Limits the number of fields, because each unknown one costs an error message."""
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise _error(f"has {len(value)} fields; the known ones are {', '.join(cls.model_fields)}")
        return value


class Lenient(Wire):
    """Of protocols whose own servers ignore unknown fields."""

    model_config = ConfigDict(extra="ignore")


Str = Annotated[str, Field(min_length=1, json_schema_extra=NOT_BLANK), AfterValidator(_check_text)]
PromptName = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Timeout = Annotated[
    int, Field(json_schema_extra={"minimum": 1}), AfterValidator(_check_timeout), BeforeValidator(_to_int)
]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K), BeforeValidator(_to_int)]
SpanTopK = Annotated[int, Field(ge=1, le=MAX_SPANS), BeforeValidator(_to_int)]
AnswerTokens = Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS), BeforeValidator(_to_int)]
Stride = Annotated[int, Field(ge=0, le=MAX_STRIDE), BeforeValidator(_to_int)]
Threshold = Annotated[float, Field(ge=-MAX_THRESHOLD, le=MAX_THRESHOLD)]
Separator = Annotated[
    str, Field(min_length=1, max_length=MAX_SEPARATOR_CHARS, json_schema_extra=NOT_BLANK), AfterValidator(_check_text)
]
Probability = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
Names = Annotated[list[Str], BeforeValidator(_check_names), Field(min_length=1, json_schema_extra=DIFFERENT)]


About = Annotated[str, Field(min_length=1, json_schema_extra=NOT_BLANK), AfterValidator(_check_about)]
Examples = Annotated[list[About], BeforeValidator(_check_examples), Field(min_length=1)]


class LabelObject(Wire):
    """A label that is more than its name."""

    name: Str = Field(description="The label, in natural language.")
    description: About | None = Field(None, description="What the label means; the models read it with the name.")
    examples: Examples | None = Field(None, description="Texts that have the label.")


def label_of(label: str | LabelObject) -> Label:
    if isinstance(label, str):
        return Label(label)
    return Label(label.name, label.description, tuple(label.examples or ()))


def _write_label(label: str | LabelObject) -> str | LabelObject:
    if isinstance(label, str) or label.description is not None or label.examples is not None:
        return label
    return label.name


# Most labels are strings: a model for each of them would cost more than the rest of the request's validation.
AnyLabel = Annotated[
    str | LabelObject,
    GetPydanticSchema(lambda _, schema_of: schema_of(LabelObject)),
    WrapValidator(_read_label, json_schema_input_type=Str | LabelObject),
    PlainSerializer(_write_label, return_type=Str | LabelObject),
]
InlineLabels = Annotated[
    list[AnyLabel], BeforeValidator(_check_inline_labels), Field(min_length=1, json_schema_extra=DIFFERENT)
]
SetLabels = Annotated[
    list[AnyLabel], BeforeValidator(_check_set_labels), Field(min_length=1, json_schema_extra=DIFFERENT)
]


class TextInput(Wire):
    """A text, or two texts for models that take pairs."""

    text: Str
    text_pair: Str | None = None


class ReadingInput(Wire):
    """A question about a passage, and the answers to choose from; without `choices` a part of the passage answers."""

    passage: Str
    question: Str
    choices: Names | None = None


OneText = Annotated[TextInput, BeforeValidator(_wrap_text, json_schema_input_type=Str | TextInput)]
SomeTexts = Annotated[list[Str | TextInput], Field(min_length=1)]
TextInputs = Annotated[list[OneText], BeforeValidator(_wrap_inputs, json_schema_input_type=Str | SomeTexts)]

SomeStrings = Annotated[list[Str], Field(min_length=1)]
Strings = Annotated[list[Str], BeforeValidator(_wrap_inputs, json_schema_input_type=Str | SomeStrings)]
ManyStrings = Annotated[list[Str], BeforeValidator(check_inputs), Field(min_length=1)]

TextsOrIds = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_wrap_texts_or_ids, json_schema_input_type=Str | SomeStrings | list[int] | list[list[int]]),
]

Masked = Annotated[str, Field(json_schema_extra={"pattern": r"\[MASK\]"})]
SomeMasked = Annotated[list[Masked], Field(min_length=1)]
MaskedStrings = Annotated[list[Str], BeforeValidator(_wrap_inputs, json_schema_input_type=Masked | SomeMasked)]

Pair = Annotated[list[Str], BeforeValidator(_check_pair), Field(min_length=2, max_length=2)]
Pairs = Annotated[list[Pair], BeforeValidator(check_inputs), Field(min_length=1)]
Readings = Annotated[list[ReadingInput], BeforeValidator(check_inputs), Field(min_length=1)]
