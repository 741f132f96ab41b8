"""Label Studio's labeling configs: what is read of them, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.protocols.label_config import MAX_DEPTH, MAX_ELEMENTS, Option, read_config
from service.errors import InvalidRequest

CHOICES = """
<View>
  <Header value="评价如何？"/>
  <Text name="text" value="$text"/>
  <View><Choices name="mood" toName="text" choice="multiple" showInLine="true">
    <View><Choice value="好评" alias="pos" hotkey="p"/></View>
    <Choice value="差评"><Choice value="物流慢"/></Choice>
  </Choices></View>
  <TextArea name="note" toName="text"/>
</View>
"""


def view(inside: str, text: str = '<Text name="t" value="$t"/>') -> str:
    return f"<View>{text}{inside}</View>"


def test_choices_are_read_with_what_stands_in_annotations() -> None:
    config = read_config(CHOICES, "label_config")
    [control] = config.controls
    assert (control.kind, control.name, control.to_names, control.is_multiple) == ("Choices", "mood", ("text",), True)
    assert control.options == (Option("好评", ("pos",)), Option("差评", ("差评",)), Option("物流慢", ("物流慢",)))
    assert config.header == "评价如何？"


def test_a_taxonomy_has_the_paths_of_its_leaves() -> None:
    branch = '<Choice value="体育"><Choice value="足球" alias="fb"/></Choice>'
    inside = f'<Taxonomy name="x" toName="t">{branch}<Choice value="财经"/></Taxonomy>'
    [control] = read_config(view(inside), "c").controls
    assert control.options == (Option("体育/足球", ("体育", "fb")), Option("财经", ("财经",)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": {"b": "文"}}, "文"),
        ({"a.b": "文"}, "文"),
        ({"a": "x"}, None),
        ({"a": {"b": " "}}, None),
        ({"a": {"b": 3}}, None),
        ({}, None),
    ],
)
def test_a_text_is_found_by_its_name_or_path(data: dict[str, object], expected: str | None) -> None:
    inside = '<Choices name="c" toName="t"><Choice value="a"/></Choices>'
    assert read_config(view(inside, '<Text name="t" value="$a.b"/>'), "c").text("t", data) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "c: is not XML"),
        ("<View>", "c: is not XML"),
        ("plain", "c: is not XML"),
        ("<View/>", "c: has no Choices, Taxonomy or Pairwise"),
        (view('<Labels name="l" toName="t"/>'), "c: has no Choices, Taxonomy or Pairwise; it has Labels"),
        (view('<Choices name="c" toName="t"/>'), "has no Choice"),
        (view('<Choices toName="t"><Choice value="a"/></Choices>'), "must have a name and a toName"),
        (view('<Choices name="c" toName="x"><Choice value="a"/></Choices>'), "there is no object x"),
        (view('<Choices name="c" toName="t" value="$o"/>'), "must be in the config"),
        (view('<Taxonomy name="c" toName="t" apiUrl="http://x"/>'), "must be in the config"),
        (view('<Pairwise name="c" toName="t"/>'), "a toName with two names"),
        (
            view('<Choices name="c" toName="t"><Choice value="a"/></Choices>', '<Image name="t" value="$t"/>'),
            "t cannot be read: Image is no Text",
        ),
        (
            view(
                '<Choices name="c" toName="t"><Choice value="a"/></Choices>',
                '<Text name="t" value="$t" valueType="url"/>',
            ),
            "this server fetches none",
        ),
        (
            view('<Choices name="c" toName="t"><Choice value="a"/></Choices>', '<Text name="t" value="fixed"/>'),
            "its value is not $FIELD",
        ),
    ],
)
def test_another_config_is_refused_with_the_reason(config: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_config(config, "c")
    assert message in caught.value.detail


@pytest.mark.parametrize(
    "document_type",
    [
        '<!DOCTYPE v [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE v [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE v SYSTEM "http://example.com/v.dtd">',
        "<!DOCTYPE v>",
    ],
)
def test_a_document_type_is_refused_so_no_entity_is_read(document_type: str) -> None:
    with pytest.raises(InvalidRequest, match="must not have a document type"):
        read_config(document_type + view("&b;"), "c")


@pytest.mark.parametrize("config", ["<a>" * (MAX_DEPTH + 1), "<v>" + "<a/>" * MAX_ELEMENTS + "</v>"])
def test_a_config_beyond_the_bounds_is_refused(config: str) -> None:
    with pytest.raises(InvalidRequest, match="is too large"):
        read_config(config, "c")


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_no_text_raises_anything_but_our_errors(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_config(text, "c")
