"""The weights files of a checkpoint folder, and the names of their tensors.

Only indexes, headers and the strings of pickles are read. No tensor is read, and no pickle is executed.
"""

from __future__ import annotations

import json
import os
import pickletools
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from service.errors import CheckpointError

# In order of preference, as in transformers: whole before sharded, safetensors before pickle.
SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json")
BIN_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What peft's `save_pretrained` writes: the changes of an adapter to the weights of another checkpoint."""

CONFIG_FILES = ("config.json", "bert_config.json")
"""The second is Google's name, under which the first Chinese checkpoints were published."""
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")

_LFS_POINTER = b"version https://git-lfs"
_START_BYTES = 64
_LISTED_FILES = 12
_WRAPPERS = re.compile(r"(?:(?:module|model|_orig_mod)\.)+")
"""What DistributedDataParallel, a model that is an attribute of another one, and torch.compile put before names."""
_OTHER_STATE = re.compile(r"(adapter|training_args|optimizer|scheduler|random_states|rng)")
_READ_BYTES = 1 << 24
_MAX_JSON_BYTES = 1 << 26
_LEGACY_PICKLES = 4  # the old .bin format: magic number, protocol, system, then the state dict
_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1", "INT")
_SHAPES = {"TUPLE1": 1, "TUPLE2": 2}


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weights files of `folder`: one file, or the shards that its index lists.

    Raises CheckpointError when there are none, or when the index names a file that does not exist.
    """
    for name in (*SAFETENSORS_FILES, *BIN_FILES):
        file = folder / name
        if file.is_file():
            return _without_pointers(_shards(file) if name.endswith(".json") else (file,))
    wanted = ", ".join((*SAFETENSORS_FILES, *BIN_FILES))
    raise CheckpointError(f"{folder}: no weights here; wanted one of {wanted}; {_what_is_there(folder)}")


def config_file(folder: Path) -> Path:
    """config.json, else Google's bert_config.json; CheckpointError when neither is there, with what is."""
    for name in CONFIG_FILES:
        try:
            (folder / name).stat()
        except FileNotFoundError:
            continue
        except OSError:
            pass  # reading it reports the reason
        return folder / name
    raise CheckpointError(f"{folder / CONFIG_FILES[0]}: no such file; {_what_is_there(folder)}")


def succeeds(check: Callable[[], bool]) -> bool:
    """The answer of `Path.is_file` and its like; False where it cannot be had, as in a folder without permission."""
    with suppress(OSError):
        return check()
    return False


def has_config(folder: Path) -> bool:
    return any(succeeds((folder / name).is_file) for name in CONFIG_FILES)


def missing_files(folder: Path) -> list[str]:
    """The files that a checkpoint needs and `folder` does not have; "weights" where none of any format are there."""
    if succeeds((folder / ADAPTER_CONFIG).is_file):  # its base has the rest
        return [] if succeeds((folder / ADAPTER_WEIGHTS).is_file) else [ADAPTER_WEIGHTS]
    missing = [] if has_config(folder) else [CONFIG_FILES[0]]
    if not any(succeeds((folder / name).is_file) for name in VOCABULARY_FILES):
        missing.append(VOCABULARY_FILES[0])
    found = next((name for name in (*SAFETENSORS_FILES, *BIN_FILES) if succeeds((folder / name).is_file)), None)
    if found is None:
        missing.append("weights")
    elif found.endswith(".json"):
        with suppress(CheckpointError):  # an index that cannot be read is not missing; `weight_files` reports it
            missing += [name for name in _shard_names(folder / found) if not succeeds((folder / name).is_file)]
    return missing


def list_contents(folder: Path) -> list[str]:
    """The names in `folder`, sorted; none where it cannot be read."""
    with suppress(OSError):
        return sorted(file.name for file in folder.iterdir())
    return []


def strip_wrappers(name: str) -> str:
    """The name of a tensor without what a wrapper around the model put before it, such as `module.`."""
    wrapper = _WRAPPERS.match(name)
    return name[wrapper.end() :] if wrapper else name


def canonical_name(name: str) -> str:
    """The name of a tensor without prefixes of wrappers and of the encoder, and without old names of norms."""
    name = strip_wrappers(name).removeprefix("bert.").removeprefix("roberta.")
    if name.endswith(".gamma"):
        return name.removesuffix("gamma") + "weight"
    return name.removesuffix("beta") + "bias" if name.endswith(".beta") else name


def are_pickled(files: Sequence[Path]) -> bool:
    """Whether a `.bin` file is among them."""
    return any(file.suffix == ".bin" for file in files)


def tensor_names(folder: Path) -> frozenset[str]:
    """The names of the tensors in the weights of `folder`, without wrappers such as `module.`.

    For a pickle, other strings may be among them.
    """
    names: set[str] = set()
    for file in weight_files(folder):
        try:
            names |= _safetensors_names(file) if file.suffix == ".safetensors" else _bin_names(file)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged or hostile file may make a parser raise anything
            raise CheckpointError(f"{file}: cannot be read as weights ({type(error).__name__})") from error
    return frozenset(map(strip_wrappers, names))


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of one safetensors file, by name.

    Raises:
        CheckpointError: the file is missing, damaged or another format.
    """
    _without_pointers((file,))
    try:
        with safe_open(file, framework="np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged or hostile file may make a parser raise anything
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from error


def tensor_rows(folder: Path, name: str) -> int | None:
    """The first dimension of the tensor `name`, also behind a prefix that ends with a dot.

    None if there is no such tensor or the weights cannot be read: loading them reports why.
    """
    with suppress(Exception):  # a damaged or hostile file may make a parser raise anything
        for file in weight_files(folder):
            if rows := _safetensors_rows(file, name) if file.suffix == ".safetensors" else _bin_rows(file, name):
                return rows
    return None


def require_stored(file: Path) -> None:
    """CheckpointError when a part of a `.bin` is compressed: the file is mapped, and would be taken for numbers."""
    with zipfile.ZipFile(file) as archive:
        compressed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise CheckpointError(f"{file}: {compressed[0]} in it is compressed; wanted an archive as torch.save writes it")


def require_checksums(files: Sequence[Path]) -> None:
    """Reads `.bin` files completely; CheckpointError when a part of one does not match its checksum.

    The format before torch 1.6 has no checksums.
    """
    for file in filter(zipfile.is_zipfile, files):
        with zipfile.ZipFile(file) as archive:
            # Not `testzip`: torch can save without checksums, which then are 0, and `testzip` takes that for damage.
            for part in (part for part in archive.infolist() if part.CRC):
                try:
                    with archive.open(part) as stream:
                        while stream.read(_READ_BYTES):
                            pass
                except zipfile.BadZipFile as error:
                    reason = f"{part.filename} in it is corrupt: wanted the CRC-32 {part.CRC:08x}"
                    raise CheckpointError(f"{file}: {reason}; fetch the file again") from error


def read_ahead(files: Sequence[Path]) -> None:
    """Reads the files into the system's page cache, in this order, up to the first that cannot be read."""
    with Path(os.devnull).open("wb") as devnull, suppress(OSError):  # the loader reports what is wrong
        for file in files:
            with file.open("rb", buffering=0) as stream:
                # sendfile to /dev/null does not copy the pages; read would.
                while os.sendfile(devnull.fileno(), stream.fileno(), None, _READ_BYTES):
                    pass


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, which may begin with a byte-order mark.

    CheckpointError when the file is missing, too large, or holds no JSON object, or a lone surrogate, which no reply
    could contain.
    """
    content = _read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: wanted a JSON object, found {type(content).__name__}")
    return content


def read_json_list(file: Path) -> list[Any]:
    """The JSON list in `file`; CheckpointError as `read_json` raises it."""
    content = _read_json(file)
    if not isinstance(content, list):
        raise CheckpointError(f"{file}: wanted a JSON list, found {type(content).__name__}")
    return content


def _read_json(file: Path) -> Any:
    try:
        if (size := file.stat().st_size) > _MAX_JSON_BYTES:
            raise CheckpointError(f"{file}: has {size} bytes; wanted at most {_MAX_JSON_BYTES}")
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text)
        if "\\u" in text:  # only an escape makes a lone surrogate; writing a large tokenizer.json takes 0.1 s
            json.dumps(content, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}){_why_no_json(file, error)}") from error
    return content


def _why_no_json(file: Path, error: ValueError | RecursionError) -> str:
    """What the file is instead, or has at the place of the error; empty where that is unknown."""
    with file.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ": it is UTF-16; save it as UTF-8"
    if other := _what_else(start):
        return f": {other}"
    if isinstance(error, UnicodeDecodeError):
        return ": save it as UTF-8"
    at_error = error.doc[error.pos :] if isinstance(error, json.JSONDecodeError) else ""
    return ": JSON has no comments; remove them" if at_error.startswith(("//", "/*", "#")) else ""


def _what_else(start: bytes) -> str | None:
    """What a file is that starts like this, where a download often puts it in the place of another."""
    if start.startswith(_LFS_POINTER):
        return "a git-lfs pointer; fetch the files with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; download the file itself"
    return None


def _what_is_there(folder: Path) -> str:
    """The contents of a folder that lacks a file, and what to do where that is known."""
    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        return f"it cannot be listed: {error.strerror}"
    if not names:
        return "it is empty"
    shown = [_show(folder / name) for name in names[:_LISTED_FILES]]
    more = [f"{len(names) - _LISTED_FILES} more"] if len(names) > _LISTED_FILES else []
    return f"it holds {', '.join(shown + more)}{_what_to_do(folder, names)}"


def _what_to_do(folder: Path, names: Sequence[str]) -> str:
    inner = [folder / name for name in names if has_config(folder / name)]
    if inner and not has_config(folder):
        return "; wanted " + " or ".join(f"--model {shlex.quote(str(each))}" for each in inner[:3])
    if folder.parent.name == "snapshots":
        return ": an earlier download was not finished"
    weights = [name for name in names if name.endswith((".safetensors", ".bin")) and succeeds((folder / name).is_file)]
    if any("-of-" in name for name in weights):
        return "; shards are read with their index"
    others = [name for name in weights if not _OTHER_STATE.match(name)]
    if has_config(folder) and len(others) == 1:
        whole = SAFETENSORS_FILES[0] if others[0].endswith(".safetensors") else BIN_FILES[0]
        return f"; if {others[0]} is the weights, rename it to {whole}"
    return ""


def _show(file: Path) -> str:
    name = file.name if file.name.isprintable() else ascii(file.name)
    if file.is_symlink() and not succeeds(file.exists):
        return f"{name} (a link to {file.readlink()}, which is not there)"
    return f"{name}/" if succeeds(file.is_dir) else name


def _without_pointers(files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        try:
            with file.open("rb") as stream:
                start = stream.read(_START_BYTES)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if other := _what_else(start):
            raise CheckpointError(f"{file}: not the weights but {other}")
    return files


def _shards(index: Path) -> tuple[Path, ...]:
    names = _shard_names(index)
    for name in names:
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names the file {name}, which is not there")
    return tuple(index.parent / name for name in names)


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map: wanted an object of tensor name -> file name")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if name != Path(name).name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index}: weight_map: wanted plain .safetensors or .bin file names, found {name!r}")
    return names


def _safetensors_names(file: Path) -> set[str]:
    with safe_open(file, framework="np") as opened:
        return set(opened.keys())


def _safetensors_rows(file: Path, name: str) -> int | None:
    with safe_open(file, framework="np") as opened:
        found = [key for key in opened.keys() if _is_called(key, name)]  # noqa: SIM118 - not a dictionary
        return int(opened.get_slice(found[0]).get_shape()[0]) if found else None


def _bin_names(file: Path) -> set[str]:
    return {value for _, value in _opcodes(file) if isinstance(value, str)}


def _bin_rows(file: Path, name: str) -> int | None:
    """The pickle of a tensor is its name, the persistent id of its storage, its offset, and its shape as a tuple."""
    opcodes = _opcodes(file)
    if not any(isinstance(value, str) and _is_called(value, name) for _, value in opcodes):
        return None
    numbers: list[int] = []
    for opcode, value in opcodes:
        if opcode in _INTEGERS and isinstance(value, int):
            numbers.append(value)
        elif opcode == "BINPERSID":
            numbers.clear()
        elif opcode in _SHAPES:
            dimensions = _SHAPES[opcode]
            return numbers[-dimensions] if len(numbers) == dimensions + 1 else None
    return None


def _is_called(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")


def _opcodes(file: Path) -> Iterator[tuple[str, Any]]:
    """The opcodes of the pickle in a .bin, with their arguments."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            for _ in range(_LEGACY_PICKLES):
                yield from ((opcode.name, value) for opcode, value, _ in pickletools.genops(stream))
        return
    require_stored(file)
    with zipfile.ZipFile(file) as archive:
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
        with archive.open(pickled) as stream:
            yield from ((opcode.name, value) for opcode, value, _ in pickletools.genops(stream))
