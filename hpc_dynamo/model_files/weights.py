"""Weights of a model: checks that every file that an engine reads exists and is complete.

Only headers are read: the format of a safetensors file gives its length
(https://github.com/huggingface/safetensors, README, "Format"). What engines look for: vLLM 0.32,
model_executor/model_loader/default_loader.py (_prepare_weights), lora/lora_model.py.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from hpc_dynamo.regular_file import open_regular_file, read_regular_file

POINTER = b"version https://git-lfs.github.com/spec/"
MAX_JSON_BYTES = 256 << 20  # the largest vocabularies have 50 MB
MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors library
_MAGIC = b"GGUF"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>\w+)")
_INDEXES = (
    "model.safetensors.index.json",
    "consolidated.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_KINDS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "rank*.engine")
# Written by trainers next to the weights; no engine loads them.
_OTHER = re.compile(r"(training_args|optimizer|scheduler|rng_state\w*|scaler|trainer_state)\.\w+")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # errors of JSON readers
_SHOWN = 3  # names of files in a message


class _Index(msgspec.Struct):
    """Index of sharded weights: the file of each tensor."""

    weight_map: dict[str, str]


class _Tensor(msgspec.Struct):
    """Entry of a safetensors header; `__metadata__` has no offsets."""

    data_offsets: tuple[int, int] = (0, 0)


def weight_defects(folder: Path) -> list[str]:
    """Return defects of the weights in a folder; none if one set of them is complete."""
    sets = list(_sets(folder))
    found = [file_defects(folder, names) for names in sets]
    if any(not defects for defects in found):
        return []
    return min(found, key=len) if found else ["there are no weights (*.safetensors, *.bin, *.gguf)"]


def _sets(folder: Path) -> Iterator[list[str]]:
    """Yield names of files that belong together: of each index, or else of each kind."""
    indexed = False
    for name in _INDEXES:
        if (folder / name).exists():
            indexed = True
            yield [name, *_shards(folder / name)]
    if indexed:
        return
    for kind in _KINDS:
        names = [p.name for p in folder.glob(kind) if not _OTHER.fullmatch(p.name)]
        if names:
            yield sorted({*names, *_siblings(names)})


def _shards(index: Path) -> list[str]:
    """Return files that an index names; none if it is unreadable, see `file_defects`."""
    try:
        content = read_regular_file(index, MAX_JSON_BYTES)
        parsed = msgspec.json.decode(content, type=_Index)
    except (OSError, *_UNREADABLE):
        return []
    return sorted(set(parsed.weight_map.values()))


def _siblings(names: Iterable[str]) -> Iterator[str]:
    """Yield all shards of sets that are partly there, by the count in their names."""
    for name in names:
        if shard := _SHARD.fullmatch(name):
            for number in range(1, int(shard["count"]) + 1):
                yield f"{shard['stem']}-{number:05d}-of-{shard['count']}.{shard['kind']}"


def file_defects(folder: Path, names: Iterable[str]) -> list[str]:
    """Return defects of these files; files with the same defect share one phrase."""
    by_defect = dict[str, list[str]]()
    for name in names:
        if defect := _defect(folder / name):
            by_defect.setdefault(defect, []).append(name)
    return [f"{_listed(files)} {defect}" for defect, files in by_defect.items()]


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{', '.join(names[:_SHOWN])}{more}:"


def _defect(file: Path) -> str:
    """Return why an engine cannot load a file; empty if it looks complete."""
    try:
        if not file.exists():
            return "not downloaded (a broken link)" if file.is_symlink() else "missing"
        with open_regular_file(file) as content:
            start, size = content.read(len(POINTER)), file.stat().st_size
            if not size:
                return "empty"
            if start == POINTER:
                return "a Git LFS pointer, not the file itself"
            if file.suffix == ".json":
                return _json_defect(file)
            if file.suffix == ".gguf" and not start.startswith(_MAGIC):
                return "not a GGUF file"
            if file.suffix == ".safetensors":
                content.seek(0)
                return _safetensors_defect(content.read(8), content.read, size)
    except OSError as e:
        return f"cannot be read ({e.strerror or e})"
    return ""


def _json_defect(file: Path) -> str:
    try:
        content = msgspec.json.decode(
            read_regular_file(file, MAX_JSON_BYTES), type=dict[str, msgspec.Raw]
        )
    except _UNREADABLE as e:
        return f"not a JSON object ({e})"
    return "" if content else "an empty JSON object"


def _safetensors_defect(start: bytes, read: Callable[[int], bytes], size: int) -> str:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
        return "truncated or not a safetensors file"
    try:
        header = msgspec.json.decode(read(length), type=dict[str, _Tensor])
    except _UNREADABLE:
        return "not a safetensors file"
    whole = 8 + length + max((tensor.data_offsets[1] for tensor in header.values()), default=0)
    return f"truncated ({size:,} of {whole:,} bytes)" if size < whole else ""
