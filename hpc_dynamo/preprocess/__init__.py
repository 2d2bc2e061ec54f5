"""From an OpenAI body to the token ids that an engine will compute, without transformers.

    body ── conversation ── template ──> text ── encoder ──> Tokens

The ids serve routing by prefix and the refusal of prompts that are too long, so they must equal
the engine's; where that cannot be promised the answer is `Unpredictable`, never a guess.
vLLM 0.32 is what chats and completions are held against.
"""

from hpc_dynamo.preprocess.completion_prompts import TokenIdsOnly, completion_token_ids
from hpc_dynamo.preprocess.loading import load_tokenizer, mismatched_tokenizer, tokenizer_problem
from hpc_dynamo.preprocess.preprocessor import Preprocessor
from hpc_dynamo.preprocess.tokens import NoTokenizer, PromptRejected, Tokens, UnknownTokens

__all__ = [
    "NoTokenizer",
    "Preprocessor",
    "PromptRejected",
    "TokenIdsOnly",
    "Tokens",
    "UnknownTokens",
    "completion_token_ids",
    "load_tokenizer",
    "mismatched_tokenizer",
    "tokenizer_problem",
]
