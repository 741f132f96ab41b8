"""JSON schemas whose values a classifier can choose: enums, booleans, lists of enum values, and objects of these.

A schema is read into decisions, each with options, and a form that the chosen options fill in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from service.errors import UnsupportedRequest

MAX_DECISIONS = 32
MAX_DEPTH = 8
MAX_READ = 10_000
"""Parts and options of a schema: a definition that is referred to often is read as often."""
TRUE_FALSE = ("是", "否")
"""The options of a boolean, as a choice model and an embedding model read them."""
IS_CHOSEN = 0.5
"""Least score of an option of a list."""
WANTED = (
    "wanted an enum, a boolean, a list whose items are an enum, or an object with such properties: "
    'for example {"type": "object", "properties": {"label": {"enum": ["好评", "差评"]}}}'
)


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice: `values` are what the options, in words, stand for. `path` is that of the schema, for errors.

    With `is_list` any number of options may be chosen, from `min_items` to `max_items`.
    """

    path: str
    options: tuple[str, ...]
    values: tuple[Any, ...]
    question: str | None = None
    is_list: bool = False
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the reply's text. `score` is that of a chosen option, `others` are the scores of all options."""

    text: str
    score: float = 1.0
    others: tuple[tuple[str, float], ...] = ()


Scores = Mapping[str, float]
"""By option; one that is not there has 0."""
_Form = int | dict[str, Any] | Piece
"""The index of a decision, an object of forms, or a constant."""


@dataclass(slots=True)
class ChoiceSchema:
    """`decisions` in the order in which `fill` expects their scores."""

    decisions: list[Decision] = field(default_factory=list)
    _form: Any = None

    def fill(self, scores: Sequence[Scores]) -> list[Piece]:
        """The JSON value that the scores choose, in pieces."""
        return list(_merge(self._pieces(self._form, scores)))

    def _pieces(self, form: Any, scores: Sequence[Scores]) -> Iterator[Piece]:
        if isinstance(form, Piece):
            yield form
        elif isinstance(form, int):
            yield from _chosen(self.decisions[form], scores[form])
        else:
            yield Piece("{")
            for index, (name, part) in enumerate(form.items()):
                yield Piece(f"{',' if index else ''}{_json(name)}:")
                yield from self._pieces(part, scores)
            yield Piece("}")


def read_choices(values: Sequence[Any], path: str) -> ChoiceSchema:
    """The schema of a list of options. Their text is the reply, without quotes."""
    if not values or not all(isinstance(value, str) for value in values):
        raise UnsupportedRequest.of(path, "must be a list of at least one text")
    return ChoiceSchema([Decision(path, tuple(values), tuple(values))], 0)


def read_schema(schema: Any, path: str) -> ChoiceSchema:
    """Raises UnsupportedRequest, which names the part of the schema that is no choice."""
    found = ChoiceSchema()
    reader = _Reader(schema if isinstance(schema, dict) else {}, found.decisions)
    found._form = reader.read(schema, path, 0)
    if not found.decisions:
        raise UnsupportedRequest.of(path, f"has nothing to choose; {WANTED}")
    if len(found.decisions) == 1 and (question := _text(schema, "description")):
        [only] = found.decisions
        found.decisions[0] = only if only.question else _with_question(only, question)
    return found


@dataclass(slots=True)
class _Reader:
    root: dict[str, Any]
    decisions: list[Decision]
    num_read: int = 0

    def read(self, schema: Any, path: str, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            raise UnsupportedRequest.of(
                path, WANTED if depth <= MAX_DEPTH else "is nested too deep, or refers to itself"
            )
        if "$ref" in schema:
            return self.read({**self._referred(schema["$ref"], path), **_without_ref(schema)}, path, depth + 1)
        if (options := self._options(schema, path, depth)) is not None:
            return self._decide(options, schema, path)
        if schema.get("type") == "boolean":
            return self._add(Decision(path, TRUE_FALSE, (True, False), _text(schema, "description")))
        if schema.get("type") == "array":
            return self._list(schema, path, depth)
        if isinstance(schema.get("properties"), dict) and schema["properties"]:
            return {
                name: self.read(part, f"{path}.properties.{name[:64]}", depth + 1)
                for name, part in schema["properties"].items()
            }
        raise UnsupportedRequest.of(path, WANTED)

    def _options(self, schema: dict[str, Any], path: str, depth: int) -> list[tuple[str, Any]] | None:
        """The options of an enum, of a constant or of alternatives of these, in words and as values."""
        self.num_read += 1 + len(schema["enum"]) if isinstance(schema.get("enum"), list) else 1
        if depth > MAX_DEPTH or self.num_read > MAX_READ:
            raise UnsupportedRequest.of(path, "is too large, nested too deep, or refers to itself")
        if isinstance(schema.get("enum"), list):
            return [(_word(value), value) for value in schema["enum"] if value is not None]
        if "const" in schema:
            value = schema["const"]
            return [(_text(schema, "description") or _text(schema, "title") or _word(value), value)]
        for name in ("anyOf", "oneOf"):
            if isinstance(parts := schema.get(name), list):
                return self._alternatives(parts, f"{path}.{name}", depth)
        return None

    def _alternatives(self, parts: list[Any], path: str, depth: int) -> list[tuple[str, Any]] | None:
        found = []
        for index, part in enumerate(parts):
            if isinstance(part, dict) and "$ref" in part:
                part = self._referred(part["$ref"], path)
            if isinstance(part, dict) and part.get("type") == "null":
                continue  # of a value that may be absent; a classifier always has an answer
            options = self._options(part, f"{path}[{index}]", depth + 1) if isinstance(part, dict) else None
            if options is None and isinstance(part, dict) and part.get("type") == "boolean":
                options = list(zip(TRUE_FALSE, (True, False), strict=True))
            if options is None:
                raise UnsupportedRequest.of(f"{path}[{index}]", WANTED)
            found += options
        return found

    def _decide(self, options: list[tuple[str, Any]], schema: dict[str, Any], path: str) -> Any:
        if not options:
            return Piece("null")
        if len(options) == 1:
            return Piece(_json(options[0][1]))
        words, values = zip(*options, strict=True)
        return self._add(Decision(path, words, values, _text(schema, "description")))

    def _list(self, schema: dict[str, Any], path: str, depth: int) -> int:
        items = schema.get("items")
        if isinstance(items, dict) and "$ref" in items:
            items = self._referred(items["$ref"], path)
        options = self._options(items, f"{path}.items", depth + 1) if isinstance(items, dict) else None
        if not options:
            raise UnsupportedRequest.of(f"{path}.items", "must be an enum: of a list, only its values can be chosen")
        words, values = zip(*options, strict=True)
        least, most = schema.get("minItems"), schema.get("maxItems")
        decision = Decision(
            path,
            words,
            values,
            _text(schema, "description"),
            is_list=True,
            min_items=least if isinstance(least, int) else 0,
            max_items=most if isinstance(most, int) else None,
        )
        return self._add(decision)

    def _add(self, decision: Decision) -> int:
        if len(self.decisions) == MAX_DECISIONS:
            raise UnsupportedRequest.of(decision.path, f"is one choice too many; at most {MAX_DECISIONS} are answered")
        self.decisions.append(decision)
        return len(self.decisions) - 1

    def _referred(self, name: Any, path: str) -> dict[str, Any]:
        found: Any = self.root
        for part in str(name).removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        if not str(name).startswith("#/") or not isinstance(found, dict):
            raise UnsupportedRequest.of(f"{path}.$ref", "must name a definition of this schema, as #/$defs/NAME")
        return found


def _chosen(decision: Decision, scores: Scores) -> Iterator[Piece]:
    ranked = sorted(range(len(decision.options)), key=lambda index: -_of(scores, decision, index))
    if not decision.is_list:
        best = ranked[0]
        others = tuple((_word(decision.values[index]), _of(scores, decision, index)) for index in ranked)
        yield from _quoted(decision.values[best], _of(scores, decision, best), others)
        return
    most = len(ranked) if decision.max_items is None else decision.max_items
    kept = [
        index
        for place, index in enumerate(ranked[:most])
        if place < decision.min_items or _of(scores, decision, index) >= IS_CHOSEN
    ]
    yield Piece("[")
    for place, index in enumerate(kept):
        if place:
            yield Piece(",")
        score = _of(scores, decision, index)
        yield from _quoted(decision.values[index], score, ((_word(decision.values[index]), score),))
    yield Piece("]")


def _of(scores: Scores, decision: Decision, index: int) -> float:
    return scores.get(decision.options[index], 0.0)


def _quoted(value: Any, score: float, others: tuple[tuple[str, float], ...]) -> Iterator[Piece]:
    """The JSON of a value; the quotes of a text are pieces of their own, so that the option stands alone."""
    if not isinstance(value, str):
        yield Piece(_json(value), score, others)
        return
    yield Piece('"')
    yield Piece(_json(value)[1:-1], score, others)
    yield Piece('"')


def _merge(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Joins the pieces between two options."""
    waiting = ""
    for piece in pieces:
        if piece.others:
            if waiting:
                yield Piece(waiting)
            waiting = ""
            yield piece
        else:
            waiting += piece.text
    if waiting:
        yield Piece(waiting)


def _with_question(decision: Decision, question: str) -> Decision:
    return Decision(
        decision.path,
        decision.options,
        decision.values,
        question,
        decision.is_list,
        decision.min_items,
        decision.max_items,
    )


def _without_ref(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "$ref"}


def _text(schema: dict[str, Any], name: str) -> str | None:
    value = schema.get(name)
    return value if isinstance(value, str) and value.strip() else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
