"""Chat templates of models, rendered as engines do, in a process that can be killed.

The author of a model chooses its templates, and Jinja's sandbox limits neither time nor memory.
Therefore a child process renders them (`renderer_process`, `renderer_child`), with limits that the
kernel enforces.

- `renderer`: the text of a request body; `chat_messages`: messages and tools for templates
- `template`, `content_format`: one Jinja template
- `__main__`: the child process; `limits`: what one rendering may use

This file imports nothing that needs asyncio, so that the child starts quickly.
"""

from hpc_dynamo.chat_templates.refusals import PromptRejected, TemplateFailed, UnsupportedPrompt
from hpc_dynamo.chat_templates.renderer import ChatRenderer

__all__ = ["ChatRenderer", "PromptRejected", "TemplateFailed", "UnsupportedPrompt"]
