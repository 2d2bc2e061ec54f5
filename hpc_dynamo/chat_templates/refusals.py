"""Reasons why a chat is not rendered."""

from hpc_dynamo.errors import RequestFailed


class UnsupportedPrompt(Exception):
    """The prompt has parts that only the engine can tokenize or reject."""


class PromptRejected(RequestFailed):
    """The model's chat template rejects these messages; engines also answer 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400)


class TemplateFailed(RequestFailed):
    """A chat template exceeded a limit, or ended the process that rendered it."""
