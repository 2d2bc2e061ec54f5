"""A vision model with random weights, and images, for tests with real engines.

Idefics 3's checkpoint format (huggingface.co/docs/transformers, Idefics3): a vision transformer, a
projection, and a Llama. vLLM 0.32 runs it without torchvision, unlike LLaVA and Qwen-VL.
"""

import base64
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.support.tiny_models import TOKENIZER, language_model, noise, save

IMAGE, PATCH, VISION, VISION_INNER = 128, 8, 32, 64
IMAGE_TOKENS = (IMAGE // PATCH) ** 2  # 256
VISION_CONFIG = {
    "model_type": "idefics3_vision", "hidden_size": VISION, "image_size": IMAGE,
    "intermediate_size": VISION_INNER, "num_attention_heads": 2, "num_channels": 3,
    "num_hidden_layers": 1, "patch_size": PATCH, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def idefics(folder: Path, like: Path) -> Path:
    """Create a model with the tokenizer of the model in `like`, and tokens for images."""
    folder.mkdir()
    text = json.loads((like / "config.json").read_text())
    token = _tokenizer(folder, like)
    text["vocab_size"] = token + len(MARKS)
    weights, shape = language_model(text)
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3",
        "image_token_id": token, "scale_factor": 1, "dtype": "float32", "use_cache": True,
        "tie_word_embeddings": False, "text_config": text | shape, "vision_config": VISION_CONFIG,
        "pad_token_id": text["eos_token_id"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _processor(folder)
    head = {"lm_head.weight": weights.pop("lm_head.weight")}
    language = {f"model.text_{name}": value for name, value in weights.items()}
    save(folder / "model.safetensors", head | language | _vision_weights(shape["hidden_size"]))
    return folder


def image(red: int, green: int, blue: int, size: int = IMAGE) -> str:
    """Return the data: URL of a PNG file with a gradient towards this colour."""
    steps = np.linspace(0, 1, size)[:, None, None]
    pixels = (steps * np.array([red, green, blue])).astype(np.uint8).repeat(size, axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">2I5B", size, size, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _tokenizer(folder: Path, like: Path) -> int:
    """Copy the tokenizer with tokens for images, and return the id of the first."""
    for name in TOKENIZER:
        shutil.copy(like / name, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [
        {"id": token + i, "content": mark, "special": True, **flags} for i, mark in enumerate(MARKS)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return token


def _processor(folder: Path) -> None:
    edge = {"longest_edge": IMAGE}
    images = {
        "image_processor_type": "Idefics3ImageProcessor", "do_resize": True, "size": edge,
        "do_image_splitting": False, "max_image_size": edge, "do_pad": True, "do_rescale": True,
        "do_normalize": True, "do_convert_rgb": True, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": IMAGE_TOKENS}
    (folder / "processor_config.json").write_text(json.dumps(processor))


def _vision_weights(hidden: int) -> dict[str, np.ndarray]:
    at, dice = "model.vision_model", np.random.default_rng(11)
    weights: dict[str, np.ndarray] = {
        f"{at}.embeddings.patch_embedding.weight": noise(dice, VISION, 3, PATCH, PATCH) / PATCH,
        f"{at}.embeddings.patch_embedding.bias": np.zeros(VISION, np.float32),
        f"{at}.embeddings.position_embedding.weight": noise(dice, IMAGE_TOKENS, VISION),
        "model.connector.modality_projection.proj.weight": noise(dice, hidden, VISION),
    }
    layer = f"{at}.encoder.layers.0"
    sizes = {
        **{f"self_attn.{name}_proj": (VISION, VISION) for name in ("q", "k", "v", "out")},
        "mlp.fc1": (VISION_INNER, VISION),
        "mlp.fc2": (VISION, VISION_INNER),
    }
    for name, (rows, columns) in sizes.items():
        weights[f"{layer}.{name}.weight"] = noise(dice, rows, columns) / columns**0.5
        weights[f"{layer}.{name}.bias"] = np.zeros(rows, np.float32)
    for name in (f"{layer}.layer_norm1", f"{layer}.layer_norm2", f"{at}.post_layernorm"):
        weights[f"{name}.weight"] = np.ones(VISION, np.float32)
        weights[f"{name}.bias"] = np.zeros(VISION, np.float32)
    return weights
