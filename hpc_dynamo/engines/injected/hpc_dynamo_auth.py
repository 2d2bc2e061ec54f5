"""ASGI middleware for engines: every path requires the run's token.

vLLM's own check covers only /v1 and leaves /tokenize, /metrics, /invocations and others open to the
network. The engine imports this file in its own environment, so it may need only the standard
library.

Source: the ASGI specification, HTTP and lifespan scopes.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSAL = b'{"error": {"message": "the run\'s token is required", "type": "authentication_error"}}'


class BearerTokenAuth:
    """Middleware that answers 401 to requests without `Authorization: Bearer $VLLM_API_KEY`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = b"Bearer " + os.environ["VLLM_API_KEY"].encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_authorized(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            kind = (b"content-type", b"application/json")
            await send({"type": "http.response.start", "status": 401, "headers": [kind]})
            await send({"type": "http.response.body", "body": REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_authorized(self, scope: Message) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)
