"""Token ids that an engine will compute for an OpenAI request body, without transformers.

    body -> chat_templates (child process) -> text -> encoder -> Tokens

The ids are used for routing by prefix and for rejecting prompts that are too long, so they must
equal the engine's. If that cannot be guaranteed, the result is `UnknownTokens`, never an estimate.
Only media are represented by other ids, and `Tokens` has their position. Chats and completions
are checked against vLLM 0.32.

- `preprocessor`: the class that frontends use; `tokens`: its results and errors
- `loading`: finds the tokenizer of a configured model; `model_folder` reads its files
- `completion_prompts`: prompts that are texts or token ids
- `media_prompt`: chats with images, audio or video
- `begun_output`: prompt and begun output, to continue a stream on another worker
- `encoder`: text to token ids
"""

from hpc_dynamo.chat_templates import PromptRejected, TemplateFailed
from hpc_dynamo.preprocess.begun_output import BegunOutput
from hpc_dynamo.preprocess.completion_prompts import TokenIdsOnly, completion_token_ids
from hpc_dynamo.preprocess.loading import load_tokenizer, mismatched_tokenizer, tokenizer_problem
from hpc_dynamo.preprocess.preprocessor import Preprocessor
from hpc_dynamo.preprocess.tokens import (
    PROMPT_FIELDS,
    NoTokenizer,
    PromptTooLong,
    Tokens,
    UnknownTokens,
)

__all__ = [
    "PROMPT_FIELDS",
    "BegunOutput",
    "NoTokenizer",
    "Preprocessor",
    "PromptRejected",
    "PromptTooLong",
    "TemplateFailed",
    "TokenIdsOnly",
    "Tokens",
    "UnknownTokens",
    "completion_token_ids",
    "load_tokenizer",
    "mismatched_tokenizer",
    "tokenizer_problem",
]
