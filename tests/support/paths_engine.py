"""An engine with many HTTP paths, as vLLM and SGLang have them.

`python -m tests.support.paths_engine NAME` prints its URL; `started` does this in a test.

Completions are one word. Responses are stored in memory, as in vLLM. Administrative paths respond,
and GET /called lists their calls.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

MODEL = "paths"
ADMINISTRATION = ("/sleep", "/wake_up", "/collective_rpc", "/update_weights", "/invocations")


class Engine:
    """Recorded administrative calls and stored responses."""

    def __init__(self, name: str) -> None:
        self.name, self.called = name, list[str]()
        self.responses = dict[str, dict[str, Any]]()
        self.app = web.Application()
        add = self.app.router.add_route
        add("GET", "/health", self.ok)
        add("GET", "/v1/models", self.models)
        add("GET", "/openapi.json", self.openapi)
        add("GET", "/called", self.list_called)
        add("GET", "/version", self.version)
        add("POST", "/v1/completions", self.complete)
        add("POST", "/v1/chat/completions", self.chat)
        add("POST", "/v1/score", self.echo)
        add("POST", "/v2/rerank", self.echo)
        add("POST", "/rerank", self.echo)
        add("POST", "/v1/rerank", self.echo)
        add("POST", "/classify", self.echo)
        add("POST", "/pooling", self.flat_error)
        add("POST", "/v1/audio/transcriptions", self.transcribe)
        add("POST", "/v1/audio/speech", self.speak)
        add("POST", "/v1/responses", self.respond)
        add("GET", "/v1/responses/{response_id}", self.response)
        add("POST", "/v1/responses/{response_id}/cancel", self.response)
        for path in ADMINISTRATION:
            add("POST", path, self.administer)

    async def ok(self, request: web.Request) -> web.Response:
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL}]})

    async def openapi(self, request: web.Request) -> web.Response:
        paths: dict[str, dict[str, Any]] = {}
        for route in self.app.router.routes():
            where = route.resource.canonical if route.resource else ""
            paths.setdefault(where, {})[route.method.lower()] = {}
        return web.json_response({"openapi": "3.1.0", "paths": paths})

    async def list_called(self, request: web.Request) -> web.Response:
        return web.json_response(self.called)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "1.0", "engine": self.name})

    async def administer(self, request: web.Request) -> web.Response:
        self.called.append(request.path)
        return web.json_response({})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            return self.hand_off({"text": "x"})
        if body.get("stream"):
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            await stream.write(b'data: {"choices":[{"text":"word"}]}\n\ndata: [DONE]\n\n')
            return stream
        table = {"tokens": ["word"], "token_logprobs": [-0.5]} if body.get("logprobs") else None
        choices = [{"text": "word", "logprobs": table}]
        return web.json_response({"choices": choices, "usage": {"completion_tokens": 1}})

    def hand_off(self, choice: dict[str, Any]) -> web.Response:
        """Respond as a prefill worker whose blocks a decode worker can pull."""
        choice |= {"index": 0, "finish_reason": "length"}
        remote = {"do_remote_prefill": True, "remote_engine_id": self.name}
        return web.json_response({"choices": [choice], "kv_transfer_params": remote})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Call the tool `report` with the fields of the request about tools.

        As a prefill worker, hand off to a decode worker, which expects the hand-off.
        """
        body = await request.json()
        params = body.get("kv_transfer_params") or {}
        if params.get("do_remote_decode"):
            return self.hand_off({"message": {"content": "x"}})
        record: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
        given = {name: body.get(name) for name in ("tools", "tool_choice")}
        given["last"] = body["messages"][-1]["role"]
        report = given | {"prefilled_by": params.get("remote_engine_id")}
        call = {"name": "report", "arguments": json.dumps(report)}
        delta = {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": call}],
        }
        end = {"index": 0, "finish_reason": "tool_calls"}
        if not body.get("stream"):
            record |= {"object": "chat.completion", "choices": [{**end, "message": delta}]}
            return web.json_response(record)
        record |= {"object": "chat.completion.chunk", "choices": [{**end, "delta": delta}]}
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(record).encode())
        return stream

    async def echo(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        return web.json_response({"path": request.path_qs, "body": body})

    async def flat_error(self, request: web.Request) -> web.Response:
        error = {"object": "error", "message": "no pooling here", "type": "BadRequestError"}
        return web.json_response(error | {"param": "task", "code": 400}, status=400)

    async def transcribe(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        if file.filename == "broken.wav":
            return web.Response(status=500, text="Internal Server Error")
        size = len(file.file.read())
        text = f"{file.filename} has {size} bytes for {form['model']!s}"
        return web.json_response({"text": text})

    async def speak(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(range(256)), content_type="audio/mpeg")

    async def respond(self, request: web.Request) -> web.Response:
        body = await request.json()
        if (before := body.get("previous_response_id")) and before not in self.responses:
            return web.json_response({"error": {"message": "not found", "code": 404}}, status=404)
        made = {"id": f"resp_{self.name}_{len(self.responses)}", "object": "response"}
        self.responses[made["id"]] = made
        return web.json_response(made)

    async def response(self, request: web.Request) -> web.Response:
        name = request.match_info["response_id"]
        if name not in self.responses:
            what = f"Response with id '{name}' not found."
            return web.json_response({"error": {"message": what, "code": 404}}, status=404)
        return web.json_response(self.responses[name] | {"of": request.method})


@contextmanager
def started(name: str) -> Iterator[str]:
    """Start an engine in a new process and yield its URL."""
    argv = [sys.executable, "-m", "tests.support.paths_engine", name]
    with subprocess.Popen(argv, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def main(name: str) -> None:
    runner = web.AppRunner(Engine(name).app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
