"""Label Studio's labeling config: the controls that a classifier can fill in, and the texts that they are about.

The config is XML from a client: it is read without a document type, so without entities, and with bounds on its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.parsers import expat

from service.errors import InvalidRequest

MAX_ELEMENTS = 10_000
MAX_DEPTH = 64
Kind = Literal["Choices", "Taxonomy", "Pairwise"]
_CONTROLS = ("Choices", "Taxonomy", "Pairwise")


@dataclass(frozen=True, slots=True)
class TextTag:
    """An object of the config: `field` is that of a task's data that has its text; None for a text that is not there,
    as of an image or of a URL, with the reason."""

    name: str
    field: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """`text` is what a model reads, `value` what an annotation holds: a choice, or the path of a taxonomy."""

    text: str
    value: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """A control that can be filled in; a `Pairwise` has two texts and no options."""

    kind: Kind
    name: str
    to_names: tuple[str, ...]
    options: tuple[Option, ...]
    is_multiple: bool = False

    @property
    def type(self) -> str:
        return self.kind.lower()


@dataclass(frozen=True, slots=True)
class LabelConfig:
    controls: tuple[Control, ...]
    texts: Mapping[str, TextTag]
    header: str | None
    """The first header: the question to the annotators."""

    def text(self, name: str, data: Mapping[str, Any]) -> str | None:
        """The text of a task for an object; None where the task has none."""
        path = self.texts[name].field
        value = None if path is None else _at(data, path)
        return value if isinstance(value, str) and value.strip() else None


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: dict[str, str]
    children: list[_Element] = field(default_factory=list)

    def walk(self) -> Iterator[_Element]:
        waiting = [self]
        while waiting:
            one = waiting.pop()
            yield one
            waiting += reversed(one.children)


def read_config(text: str, path: str) -> LabelConfig:
    """Raises InvalidRequest if it is not XML, has a document type, or nothing that this server can fill in."""
    root = _parse(text, path)
    texts = {tag.name: tag for tag in (_text_tag(one) for one in root.walk()) if tag is not None}
    controls, others = [], []
    for one in root.walk():
        if one.tag in _CONTROLS:
            controls.append(_control(one, texts, path))
        elif "toName" in one.attributes:
            others.append(one.tag[:64])  # left to the annotators
    if not controls:
        found = f"; it has {', '.join(dict.fromkeys(others))}" if others else ""
        raise InvalidRequest.of(path, f"has no {', '.join(_CONTROLS[:-1])} or {_CONTROLS[-1]}{found}")
    headers = (one.attributes.get("value", "").strip() for one in root.walk() if one.tag == "Header")
    return LabelConfig(tuple(controls), texts, next((text for text in headers if text and text[0] != "$"), None))


def _parse(text: str, path: str) -> _Element:
    """Not ElementTree: of it, no part that is written in C can refuse a document type."""
    root = _Element("", {})
    open_ones, num_elements = [root], 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal num_elements
        num_elements += 1
        if num_elements > MAX_ELEMENTS or len(open_ones) > MAX_DEPTH:
            raise InvalidRequest.of(
                path, f"is too large: at most {MAX_ELEMENTS} elements, in {MAX_DEPTH} levels, are read"
            )
        element = _Element(tag, attributes)
        open_ones[-1].children.append(element)
        open_ones.append(element)

    def refuse(*_: object) -> None:
        raise InvalidRequest.of(path, "must not have a document type: entities are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: open_ones.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        place = f"at line {error.lineno}, column {error.offset + 1}"
        raise InvalidRequest.of(path, f"is not XML: {expat.ErrorString(error.code)} {place}") from None
    return root


def _text_tag(one: _Element) -> TextTag | None:
    """The object of a config that an element is, if it is one."""
    name, value = one.attributes.get("name"), one.attributes.get("value")
    if not name or "toName" in one.attributes:
        return None
    if one.tag != "Text":
        return TextTag(name, None, f"{one.tag} is no Text")
    if one.attributes.get("valueType") == "url":
        return TextTag(name, None, "its text is behind a URL, and this server fetches none")
    if not value or value[0] != "$" or len(value) == 1:
        return TextTag(name, None, "its value is not $FIELD")
    return TextTag(name, value[1:])


def _control(one: _Element, texts: Mapping[str, TextTag], path: str) -> Control:
    name = one.attributes.get("name", "")
    to_names = tuple(part.strip() for part in one.attributes.get("toName", "").split(",") if part.strip())
    where = f"{path}: {one.tag} {name[:64]}"
    if not name or len(to_names) != (2 if one.tag == "Pairwise" else 1):
        wanted = "a name and a toName with two names" if one.tag == "Pairwise" else "a name and a toName"
        raise InvalidRequest.of(path, f"{one.tag} must have {wanted}")
    for to_name in to_names:
        if to_name not in texts:
            raise InvalidRequest.of(where, f"there is no object {to_name[:64]}")
        if texts[to_name].field is None:
            raise InvalidRequest.of(where, f"{to_name[:64]} cannot be read: {texts[to_name].reason}")
    if one.tag == "Pairwise":
        return Control("Pairwise", name, to_names, ())
    if "value" in one.attributes or "apiUrl" in one.attributes:
        raise InvalidRequest.of(
            where, "its choices must be in the config: this server fetches none, and reads none of tasks"
        )
    is_taxonomy = one.tag == "Taxonomy"
    options = tuple(_paths(one, (), ()) if is_taxonomy else _choices(one))
    if not options:
        raise InvalidRequest.of(where, "has no Choice")
    is_multiple = not is_taxonomy and one.attributes.get("choice") == "multiple"
    return Control("Taxonomy" if is_taxonomy else "Choices", name, to_names, options, is_multiple)


def _choices(one: _Element) -> Iterator[Option]:
    for each in one.walk():
        if each.tag == "Choice" and (text := each.attributes.get("value", "").strip()):
            yield Option(text, (each.attributes.get("alias") or each.attributes["value"],))


def _paths(one: _Element, above: tuple[str, ...], values: tuple[str, ...]) -> Iterator[Option]:
    """The leaves of a taxonomy. A model reads the whole path: leaves of different branches may be called alike."""
    for each in one.children:
        text = each.attributes.get("value", "").strip()
        if each.tag != "Choice" or not text:
            continue
        texts, path = (*above, text), (*values, each.attributes.get("alias") or each.attributes["value"])
        below = list(_paths(each, texts, path))
        yield from below or [Option("/".join(texts), path)]


def _at(data: Mapping[str, Any], path: str) -> Any:
    """The field of that name, else the one at that path, as in `article.title`."""
    if path in data:
        return data[path]
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
