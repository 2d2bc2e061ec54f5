"""Model folders and a Hugging Face cache in the layout of huggingface_hub."""

import json
import shutil
from hashlib import sha1
from pathlib import Path

REPOSITORY = "demo/tiny"


def safetensors(values: int = 4) -> bytes:
    """Write a complete safetensors file with one tensor."""
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4 * values)


def model_folder(folder: Path, shards: int = 2) -> Path:
    """Create a folder that passes every check: configuration, tokenizer and sharded weights."""
    folder.mkdir(parents=True)
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    for name in names:
        (folder / name).write_bytes(safetensors())
    index = {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter_folder(folder: Path) -> Path:
    """Create a LoRA adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(safetensors())
    return folder


def cached(
    cache: Path,
    files: Path,
    repository: str = REPOSITORY,
    revision: str = "main",
    *,
    link: bool = False,
) -> Path:
    """Put a folder into a cache like a download. Return the snapshot.

    `link`: the files of a large model are not copied.
    """
    entry = cache / ("models--" + repository.replace("/", "--"))
    commit = sha1(revision.encode()).hexdigest()
    snapshot, ref = entry / "snapshots" / commit, entry / "refs" / revision
    for folder in (snapshot, entry / "blobs", ref.parent):
        folder.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    for file in files.iterdir():
        blob = entry / "blobs" / sha1(file.name.encode()).hexdigest()
        blob.unlink(missing_ok=True)
        if link:
            blob.symlink_to(file)
        else:
            shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot
