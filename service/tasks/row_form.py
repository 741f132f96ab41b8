"""The form of a model's rows: which special tokens enclose one text and two, as the tokenizer's post-processor says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.errors import CheckpointError

SEGMENT_INPUT = "token_type_ids"


@dataclass(frozen=True, slots=True)
class RowForm:
    """`cls a sep` and, for a pair, `cls a sep b sep` with `num_separators` between the texts.

    `second_segment` is the segment id of the second text and of what follows it.
    """

    cls: int
    sep: int
    num_separators: int
    second_segment: int


def bert_form(cls: int, sep: int) -> RowForm:
    return RowForm(cls, sep, num_separators=1, second_segment=1)


def xlm_roberta_form(cls: int, sep: int) -> RowForm:
    return RowForm(cls, sep, num_separators=2, second_segment=0)


def read_form(path: Path, processor: Any, inputs: Any, default: RowForm) -> RowForm:
    """The form that `post_processor` of tokenizer.json describes, or `default` where there is none.

    Segment ids are an input of the model only if `inputs` (`model_input_names` of tokenizer_config.json) says so. Where
    it is silent, they are one for forms with one separator: BERT's tokenizer returns them, XLM-RoBERTa's does not.

    Raises:
        CheckpointError: the post-processor makes rows of another form.
    """
    form = default if processor is None else _of_processor(processor)
    if form is None or not isinstance(form.cls, int) or not isinstance(form.sep, int):
        raise CheckpointError(
            f"{path / 'tokenizer.json'}: post_processor makes rows that are not served ({str(processor)[:200]}); wanted"
            " those of BERT or RoBERTa: cls a sep, and cls a sep b sep with one or two sep between the texts"
        )
    has_segments = SEGMENT_INPUT in inputs if isinstance(inputs, list) else form.num_separators == 1
    return form if has_segments else replace(form, second_segment=0)


def _of_processor(processor: Any) -> RowForm | None:
    try:
        if processor["type"] == "BertProcessing":
            return bert_form(processor["cls"][1], processor["sep"][1])
        if processor["type"] == "RobertaProcessing":
            return xlm_roberta_form(processor["cls"][1], processor["sep"][1])
        return _of_template(processor) if processor["type"] == "TemplateProcessing" else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _of_template(processor: Any) -> RowForm | None:
    single = [_item(processor, item) for item in processor["single"]]
    pair = [_item(processor, item) for item in processor["pair"]]
    (cls, _), _, (sep, _) = single
    num_separators = len(pair) - 4
    segment = pair[-2][1]
    first: list[tuple[int | str, int]] = [(cls, 0), ("A", 0), (sep, 0)]
    # The segment of the last separator is not looked at: templates that have no use for segments differ there.
    wanted = [*first, *[(sep, 0)] * (num_separators - 1), ("B", segment), (sep, pair[-1][1])]
    is_sound = isinstance(cls, int) and isinstance(sep, int) and num_separators in (1, 2) and segment in (0, 1)
    if not is_sound or single != first or pair != wanted:
        return None
    return RowForm(int(cls), int(sep), num_separators, segment)


def _item(processor: Any, item: Any) -> tuple[int | str, int]:
    """The id of a special token, or "A" or "B" for a text, and the segment."""
    if "Sequence" in item:
        return item["Sequence"]["id"], item["Sequence"]["type_id"]
    [index] = processor["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return int(index), item["SpecialToken"]["type_id"]
