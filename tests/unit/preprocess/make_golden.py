"""Write golden.json: the texts that vLLM renders for cases.py, null if it rejects a body.

Run by the Python of an environment with vLLM: `python tests/unit/preprocess/make_golden.py`
"""
# mypy: ignore-errors
# The environment that checks types has no vLLM, and the one with vLLM lacks this package.

import copy
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file, as the next one
import templates  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from vllm.entrypoints.openai.chat_completion import protocol  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.renderers import chat_utils, hf  # noqa: E402

NONE = ("multimodal_config", "tokenizer_revision", "code_revision", "revision")
MODEL = SimpleNamespace(
    **dict.fromkeys(NONE),
    enable_prompt_embeds=False,
    trust_remote_code=False,
    tokenizer="",
    model="",
    hf_config=SimpleNamespace(model_type=""),
    allowed_local_media_path="",
    allowed_media_domains=None,
)


def tokenizer_with(template):
    folder = Path(tempfile.mkdtemp())
    tokenizer = Tokenizer(models.BPE({"<unk>": 0}, []))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**cases.SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return AutoTokenizer.from_pretrained(str(folder))


def rendered(tokenizer, body):
    try:
        request = protocol.ChatCompletionRequest(model="m", **copy.deepcopy(body))
        tools = request.tools and [tool.model_dump() for tool in request.tools]
        server = {"tokenize": False} | ({"tools": tools} if tools else {})
        params = request.build_chat_params(None, "auto").with_defaults(server)
        style = hf.resolve_chat_template_content_format(
            None, tools, "auto", tokenizer, model_config=MODEL
        )
        messages, *_ = chat_utils.parse_chat_messages(request.messages, MODEL, style)
        asked = params.get_apply_chat_template_kwargs()
        return hf.safe_apply_chat_template(MODEL, tokenizer, messages, **asked)
    except (ValueError, VLLMValidationError):
        return None


if __name__ == "__main__":
    found = {}
    for name, template in templates.TEMPLATES.items():
        tokenizer = tokenizer_with(template)
        for case, body in cases.BODIES.items():
            found[f"{name}/{case}"] = rendered(tokenizer, body)
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (HERE / "golden.json").write_text(text + "\n", "utf-8")
