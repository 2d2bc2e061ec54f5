"""Token ids computed by an engine, for models whose tokenizer is not available here."""

import msgspec

from hpc_dynamo.dispatch.dispatcher import Dispatcher
from hpc_dynamo.dispatch.worker_client import BufferedResponse, EngineRequest
from hpc_dynamo.engines import Body
from hpc_dynamo.preprocess import BegunOutput, Tokens
from hpc_dynamo.router import RoutingRequest

PATH = "/tokenize"
IDS = msgspec.json.Decoder(list[int])

# Fields of a chat that its token ids depend on.
OF_PROMPT = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "chat_template_kwargs",
        "continue_final_message", "messages", "model", "prompt", "tools",
    }
)  # fmt: skip


class EngineTokenizer:
    """Asks any worker. vLLM and the simulator have /tokenize for chats, SGLang only for texts."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def begun(self, body: Body, text: str, routing: RoutingRequest) -> BegunOutput:
        """Return the token ids of a prompt and of its output so far.

        Raises RequestFailed, and msgspec.DecodeError if the response has no token ids.
        """
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            before = Tokens.of(prompt)
        else:
            asked = {name: body[name] for name in OF_PROMPT & body.keys()}
            before = await self._ids(asked, routing)
        plain = {"model": body.get("model"), "prompt": text, "add_special_tokens": False}
        return BegunOutput(before, await self._ids(plain, routing) if text else Tokens(b""))

    async def _ids(self, body: Body, routing: RoutingRequest) -> Tokens:
        response = BufferedResponse()
        request = EngineRequest(PATH, msgspec.json.encode(body), body, routing)
        await self._dispatcher.run(request, response, max_attempts=1)
        return Tokens.of(IDS.decode(response.body.get("tokens", b"null")))
