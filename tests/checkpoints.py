"""Makes small random checkpoints in the file layout of the upstream repositories.

A folder holds `config.json`, `vocab.txt` and one weights file, and nothing else: no tokenizer_config, as upstream. The
tensors come from transformers' own classes, so that their names and shapes are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    MegatronBertForQuestionAnswering,
    MegatronBertForSequenceClassification,
    MegatronBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

Family = Literal["megatron-bert", "bert", "xlm-roberta"]
Kind = Literal["masked-lm", "sequence-classification", "question-answering", "encoder"]
FileFormat = Literal["safetensors", "bin"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = (
    "是非的一不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没"
    "日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明"
    "其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却"
    "代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活难神数件安表原车白应路期叫死常提感金何更反合放做系计或司利"
    "受光王果亲界及今京务制解各任至清物台象记边共风战干接它许八特觉望直服毛林题建南度统色字请交爱让认算论百吃义科怎元社术结六功指思非"
    "流每青管夫连远资队跟带花快条院变联言权往展该领传近留红治决周保达办运武半候七必城父强步完革深区即求品士转量空甚众技轻程告江语英基"
    "派满式李息写呢识极令黄德收脸钱党倒未持取设始版双历越史商千片容研像找友孩站广改议形委早房音火际则首单据导影失拿网香似斯专石若兵弟"
    "财股票育游戏娱乐差评拍照池屏幕"
    "，。？！：；、“”（）"
)

_CLASSES: dict[tuple[Family, Kind], type[PreTrainedModel]] = {
    ("megatron-bert", "masked-lm"): MegatronBertForMaskedLM,
    ("megatron-bert", "sequence-classification"): MegatronBertForSequenceClassification,
    ("megatron-bert", "question-answering"): MegatronBertForQuestionAnswering,
    ("megatron-bert", "encoder"): MegatronBertModel,
    ("bert", "masked-lm"): BertForMaskedLM,
    ("bert", "sequence-classification"): BertForSequenceClassification,
    ("bert", "question-answering"): BertForQuestionAnswering,
    ("bert", "encoder"): BertModel,
    ("xlm-roberta", "masked-lm"): XLMRobertaForMaskedLM,
    ("xlm-roberta", "sequence-classification"): XLMRobertaForSequenceClassification,
    ("xlm-roberta", "question-answering"): XLMRobertaForQuestionAnswering,
    ("xlm-roberta", "encoder"): XLMRobertaModel,
}
_CONFIGS: dict[Family, type[PreTrainedConfig]] = {
    "megatron-bert": MegatronBertConfig,
    "bert": BertConfig,
    "xlm-roberta": XLMRobertaConfig,
}
FIRST_POSITIONS: dict[Family, int] = {"megatron-bert": 0, "bert": 0, "xlm-roberta": 2}
"""The row of the position table that the first token of a text uses."""


def vocabulary() -> list[str]:
    """The tokens of every checkpoint made here, in the order of their ids."""
    single = [*CHARACTERS, *"0123456789", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [f"##{piece}" for piece in single if piece.isascii()]
    return list(dict.fromkeys((*SPECIAL_TOKENS, "是", "非", *single, *pieces)))


def make_checkpoint(
    path: Path,
    *,
    family: Family = "megatron-bert",
    kind: Kind = "masked-lm",
    file_format: FileFormat = "safetensors",
    num_labels: int = 2,
    id2label: Mapping[int, str] | None = None,
    hidden_size: int = 64,
    num_layers: int = 3,
    num_heads: int = 4,
    ffn_size: int | None = None,
    max_positions: int = 512,
    num_segments: int = 2,
    activation: str | None = None,
    init_std: float = 0.1,
    architectures: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Writes one checkpoint into the folder `path` (made if it is missing) and returns `path`.

    `max_positions` is the length of the longest row. `id2label` overrides `num_labels`. `architectures=[]` leaves that
    key out of the config. The same arguments make the same tensors.
    """
    tokens = vocabulary()
    config = _CONFIGS[family](
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=ffn_size or 4 * hidden_size,
        max_position_embeddings=FIRST_POSITIONS[family] + max_positions,
        type_vocab_size=num_segments,
        hidden_act=activation or ("gelu_new" if family == "megatron-bert" else "gelu"),
        initializer_range=init_std,
    )
    if kind == "sequence-classification":
        config.num_labels = len(id2label) if id2label else num_labels
    model = random_model(config, _CLASSES[family, kind], seed)
    path.mkdir(parents=True, exist_ok=True)
    names = [type(model).__name__] if architectures is None else architectures
    _write_config(path, config, names, kind, id2label)
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    write_weights(path, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, file_format)
    return path


def random_model(config: PreTrainedConfig, model_class: type[PreTrainedModel], seed: int) -> PreTrainedModel:
    """A model in which every tensor is random, including biases and norms, so that no term is hidden by a 0 or 1."""
    std = config.initializer_range
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm_scale else 0.0, std, generator=generator)
    return model.eval()


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], file_format: FileFormat) -> Path:
    """Writes the one weights file of a checkpoint folder; tied tensors are written twice, as upstream's are."""
    if file_format == "bin":
        file = path / "pytorch_model.bin"
        torch.save(dict(tensors), file)
    else:
        file = path / "model.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    return file


def _write_config(
    path: Path, config: PreTrainedConfig, architectures: list[str], kind: Kind, id2label: Mapping[int, str] | None
) -> None:
    keys = (
        "model_type vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "max_position_embeddings type_vocab_size layer_norm_eps initializer_range pad_token_id"
    )
    content = {key: getattr(config, key) for key in keys.split()}
    if architectures:
        content["architectures"] = architectures
    if kind == "sequence-classification":
        names = id2label or {index: f"LABEL_{index}" for index in range(config.num_labels)}
        content["id2label"] = {str(index): name for index, name in names.items()}
        content["label2id"] = {name: index for index, name in names.items()}
    (path / "config.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
