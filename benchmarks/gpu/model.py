"""Write a small Llama with random weights, and a batch for it: no download is needed.

python -m benchmarks.gpu.model FOLDER
"""

import json
import sys
from pathlib import Path

from tests.support.runs import write_prompts
from tests.support.tiny_models import byte_tokenizer, llama

REQUESTS = 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    folder = Path(sys.argv[1])
    like = byte_tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
    (like / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    (like / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    llama(folder, like)
    write_prompts(folder / "prompts.jsonl", REQUESTS, max_tokens=32)


if __name__ == "__main__":
    main()
