"""Small models with random weights, for tests with real engines.

A Llama whose heads can be split over two GPUs, and LoRA adapters for any Llama, with the vocabulary
of another model. Formats: safetensors (huggingface.co/docs/safetensors) and PEFT's
adapter_config.json.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

HIDDEN, INNER, LAYERS, HEADS, HEAD = 128, 256, 2, 4, 32
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(folder: Path) -> Path:
    """Create a model folder without weights, whose tokens are bytes, for tests of routing."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def llama(folder: Path, like: Path) -> Path:
    """Create a Llama of two layers and four heads, with the tokenizer of the model in `like`."""
    folder.mkdir()
    known = json.loads((like / "config.json").read_text())
    weights, shape = language_model(known)
    (folder / "config.json").write_text(json.dumps(known | shape))
    for name in TOKENIZER:
        if (like / name).exists():
            shutil.copy(like / name, folder)
    save(folder / "model.safetensors", weights)
    return folder


def language_model(known: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the weights of the Llama, and the fields of its configuration that differ from those
    of `known`."""
    shape = {
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD,
        "tie_word_embeddings": False,  # otherwise it repeats the last word
    }  # fmt: skip
    inner = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    heads = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (HIDDEN, HIDDEN))
    dice, weights = np.random.default_rng(7), dict[str, np.ndarray]()
    weights["model.embed_tokens.weight"] = noise(dice, known["vocab_size"], HIDDEN)
    weights["lm_head.weight"] = noise(dice, known["vocab_size"], HIDDEN)
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for part, shapes in (("self_attn", heads), ("mlp", inner)):
            for name, size in shapes.items():
                weights[f"{at}.{part}.{name}.weight"] = noise(dice, *size) / HIDDEN**0.5
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    return weights, shape


def lora(folder: Path, base: Path, rank: int, seed: int) -> Path:
    """Create an adapter of the model in `base` with large changes to attention."""
    folder.mkdir()
    shape = json.loads((base / "config.json").read_text())
    hidden, dice = shape["hidden_size"], np.random.default_rng(seed)
    wide = shape["num_attention_heads"] * shape["head_dim"]
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter | {"bias": "none"}))
    weights = dict[str, np.ndarray]()
    for layer in range(shape["num_hidden_layers"]):
        at = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{at}.lora_A.weight"] = noise(dice, rank, wide)
        weights[f"{at}.lora_B.weight"] = noise(dice, hidden, rank)
    save(folder / "adapter_model.safetensors", weights)
    return folder


def noise(dice: np.random.Generator, *shape: int) -> np.ndarray:
    return dice.standard_normal(shape, np.float32)


def save(file: Path, weights: dict[str, np.ndarray]) -> None:
    """Write a safetensors file: header length, header, values."""
    header, at = dict[str, object](), 0
    for name, values in weights.items():
        span = [at, at := at + values.nbytes]
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": span}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # values are aligned to eight bytes
    parts = (len(head).to_bytes(8, "little"), head, *(v.tobytes() for v in weights.values()))
    file.write_bytes(b"".join(parts))
