"""Hugging Face model folder: tokenizer, special tokens and chat templates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hpc_dynamo.preprocess.tokenizer_limits import require_bounded
from hpc_dynamo.preprocess.tokens import NoTokenizer
from hpc_dynamo.regular_file import read_regular_file

MAX_TOKENIZER_BYTES = 256 << 20  # the largest vocabularies have 50 MB
MAX_TOKEN_CHARS = 1000  # the start would take minutes
MAX_BYTES = 32 << 20  # limit for other files
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Architectures whose chats vLLM renders in code.
_RENDERED_IN_CODE = (
    "Cohere2Moe",
    "DeepseekV32",
    "DeepseekV4",
    "GptOss",
    "Inkling",
    "KimiK3",
    "MoonshotKimia",
)


@dataclass(frozen=True)
class ModelFolder:
    """Configuration files of a model, read once."""

    path: Path
    config: Mapping[str, Any]  # config.json
    tokenizer_config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Raises NoTokenizer if tokenizer.json is missing or a file is not JSON."""
        if not (path / "tokenizer.json").is_file():
            raise NoTokenizer(
                f"model: {path} has no tokenizer.json",
                hint="save the tokenizer with transformers' save_pretrained into that folder",
            )
        return cls(path, _json(path / "config.json"), _json(path / "tokenizer_config.json"))

    def special_tokens(self) -> dict[str, str]:
        """Return the text of each special token that templates know, such as `bos_token`."""
        kept = {**_json(self.path / "special_tokens_map.json"), **self.tokenizer_config}
        tokens = {f"{name}_token": _content(kept.get(f"{name}_token")) for name in _NAMED}
        return {name: text for name, text in tokens.items() if text}

    def templates(self) -> dict[str, str]:
        """Return chat templates by name, `default` among them. Files override the configuration."""
        kept = self.tokenizer_config.get("chat_template") or {}
        if isinstance(kept, str):
            kept = {"default": kept}
        elif isinstance(kept, list):
            entries = (one for one in kept if isinstance(one, dict))
            kept = {name: one.get("template") for one in entries
                    if isinstance(name := one.get("name"), str)}  # fmt: skip
        kept = kept if isinstance(kept, dict) else {}
        kept = {name: text for name, text in kept.items() if isinstance(text, str)}
        extra = sorted((self.path / "additional_chat_templates").glob("*.jinja"))
        files = {file.stem: file for file in extra}
        files["default"] = self.path / "chat_template.jinja"
        from_files = {k: _text(file) for k, file in files.items() if file.is_file()}
        return from_files or self._processor_template() or kept

    def _processor_template(self) -> dict[str, str]:
        text = _json(self.path / "chat_template.json").get("chat_template")
        return {"default": text} if isinstance(text, str) else {}

    def unsupported_renderer(self) -> str:
        """Return why engines do not use the folder's template; empty if they use it."""
        listed = self.config.get("architectures")
        for architecture in listed if isinstance(listed, list) else ():
            if isinstance(architecture, str) and architecture.startswith(_RENDERED_IN_CODE):
                return f"engines render {architecture} in code, not with its template"
        mistral = [*self.path.glob("tekken.json"), *self.path.glob("tokenizer.model.v*")]
        if mistral and [*self.path.glob("consolidated*.safetensors")]:
            return f"engines use {mistral[0].name} with mistral-common"
        return ""

    def tokenizer(self) -> tuple[Tokenizer, str]:
        """Return the tokenizer with the tokens that the configuration adds, and its JSON.

        It equals that of transformers 5, which ignores `add_bos_token` if there is a
        tokenizer.json. Some classes of transformers ignore parts of tokenizer.json; see
        `Preprocessor.probes`. Raises NoTokenizer if tokenizer.json cannot be read.
        """
        serialized = _text(self.path / "tokenizer.json", MAX_TOKENIZER_BYTES)
        require_bounded(serialized)
        try:
            tokenizer = Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises no narrower class
            raise NoTokenizer(f"model: {self.path}/tokenizer.json: {error}") from error
        changed = self._add_tokens(tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer, tokenizer.to_str() if changed else serialized

    def _add_tokens(self, tokenizer: Tokenizer) -> bool:
        kept = self.tokenizer_config.get("added_tokens_decoder") or {}
        there = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
        tokens = [_added(kept[number]) for number in sorted(kept, key=int)]
        missing = [token for token in tokens if repr(token) not in there]
        tokenizer.add_tokens(missing)
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        named = [text for text in self.special_tokens().values() if text not in known]
        if any(len(text) > MAX_TOKEN_CHARS for text in (*known, *named)):
            raise NoTokenizer(f"a special token has more than {MAX_TOKEN_CHARS} characters")
        tokenizer.add_tokens([AddedToken(text, special=True) for text in dict.fromkeys(named)])
        return bool(missing or named)


def _text(file: Path, max_bytes: int = MAX_BYTES) -> str:
    return read_regular_file(file, max_bytes).decode()


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise NoTokenizer(f"model: {file} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _content(token: object) -> str:
    """Return the text of a special token, stored as text or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _added(kept: Mapping[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(kept["content"], **{name: kept[name] for name in flags if name in kept})
