"""Prompts in, token ids out, with the refusals of vLLM 0.32 (`vllm/renderers/params.py`)."""

from collections.abc import Sequence

from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import Refused

Prompts = str | list[str | int | list[int]]


def from_text(text: str, most: int) -> list[int]:
    """Token ids of a text of at most `most` tokens. Raises Refused."""
    _check_characters(len(text), most)
    tokens = tokenizer.encode(text)
    _check_length(min(len(tokens), most + 1), most)  # vLLM stops to tokenize there
    return tokens


def from_ids(tokens: list[int], most: int, param: str) -> list[int]:
    """The ids themselves. Raises Refused."""
    if not tokens:
        raise Refused("The decoder prompt cannot be empty", param=param)
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < tokenizer.VOCABULARY:
            raise Refused(f"Token id {token} is out of vocabulary", param=param)
    _check_length(len(tokens), most)
    return tokens


def from_chat(said: Sequence[tuple[str, str]], most: int) -> list[int]:
    """Token ids of (role, content) pairs, up to where the assistant begins. Raises Refused."""
    _check_characters(sum(len(text) for _, text in said), most)
    tokens = tokenizer.render(said)
    _check_length(min(len(tokens), most + 1), most)
    return tokens


def from_any(prompt: Prompts, most: int, param: str) -> list[list[int]]:
    """Of a text, a list of token ids, or a list of texts or of lists of ids. Raises Refused."""
    several = [prompt] if isinstance(prompt, str) else prompt
    texts = [p for p in several if isinstance(p, str)]
    lists = [p for p in several if isinstance(p, list)]
    ids = [p for p in several if isinstance(p, int)]
    if len(several) not in (len(texts), len(ids), len(lists)):
        what = f"{param} is a text, a list of token ids, or a list of one of these"
        raise Refused(what, param=param)
    if "" in texts:
        what = f"Either {param} or prompt_embeds must be provided and non-empty."
        raise Refused(what, param=param)
    if texts:
        return [from_text(text, most) for text in texts]
    return [from_ids(each, most, param) for each in lists or [ids]]


def _check_characters(count: int, most: int) -> None:
    """Spares the work of tokenizing what is surely too long."""
    if count > most * tokenizer.MOST_CHARACTERS:
        raise Refused(
            f"This model's maximum context length is {most} tokens. However, your prompt "
            f"contains {count} characters (more than {most * tokenizer.MOST_CHARACTERS} "
            f"characters, which is the upper bound for {most} input tokens). Please reduce the "
            "length of the input prompt.",
            param="input_text",
        )


def _check_length(count: int, most: int) -> None:
    if count > most:
        least = "at least " if count == most + 1 else ""
        raise Refused(
            f"This model's maximum context length is {most} tokens. However, your prompt "
            f"contains {least}{count} input tokens, which exceeds this limit even without any "
            "output tokens. Please reduce the length of the input prompt.",
            param="input_tokens",
        )
