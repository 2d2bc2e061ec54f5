"""Why a stream cannot continue on another worker."""

from enum import StrEnum


class Obstacle(StrEnum):
    """All reasons. Each is a row of the table in docs/guides/http-endpoint.md."""

    seed = "`seed` with a `temperature` other than 0"
    tools = "`tools`, unless `tool_choice` is `none`"
    field = (
        "`n` above 1, `echo`, penalties for presence or frequency, `response_format` and other "
        "structured output, thinking, fields that hpc_dynamo does not know"
    )
    content = "images, tool results and other content that is not text"
    prompt = "a prompt whose token ids are not certain, such as several system blocks"
    stop_and_tokens = "`stop` together with `logprobs` or `return_token_ids`"
    stop_begun = "`stop`, if a sampled text ends with the beginning of a stop string"
    parsed = "output of a reasoning or tool parser"
    length = "text longer than about 50,000 tokens"
    unreadable = "output that does not have the format of its path"


class NotContinuable(Exception):
    """The stream cannot be continued."""

    def __init__(self, obstacle: Obstacle, reason: str) -> None:
        super().__init__(reason)
        self.obstacle = obstacle
