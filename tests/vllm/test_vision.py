"""Real vLLM on the CPU with a tiny vision model: a prefill and a decode worker.

The model answers with random words, which depend on the image.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.runs import until
from tests.support.tiny_vision import IMAGE_TOKENS, idefics, image
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, Served, send, serving

pytestmark = pytest.mark.vllm

QUESTION = "What is on this picture? " * 20
RED, GREEN, BLUE = image(255, 0, 0), image(0, 255, 0), image(0, 0, 255)
BLOCK = 128


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    vllm, folder = provisioned(), tmp_path_factory.mktemp("vision")
    vision = replace(vllm, model=idefics(folder / "idefics", vllm.model))
    words = ("topology=disaggregated", "router.conditional_disaggregation=false")
    with serving(vision, folder, *words) as found:
        yield found


def chat(*urls: str, text: str = QUESTION, **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    content = [*parts, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, **more}


def asked(served: Served, body: dict[str, Any]) -> tuple[str, int]:
    """Return the answer, and the cached tokens of the prompt."""
    answer = served.post(f"{served.url}/chat/completions", served.key, body)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], cached


def routed(served: Served, body: dict[str, Any]) -> int:
    """Return the tokens that the router expects on the prefill worker."""
    found = served.post(f"{served.url}/route", served.key, body)
    blocks = [int(worker["overlap_blocks"]) for worker in found["workers"]]
    return max(blocks) * int(found["block_tokens"])


def test_pair_answers_like_one_worker(served: Served) -> None:
    decode = f"{served.workers()['decode']}/v1/chat/completions"
    answers = []
    for urls in ((RED,), (BLUE,), (RED, BLUE)):
        body = chat(*urls)
        answers.append(asked(served, body)[0])
        alone = served.post(decode, served.token, body | {"cache_salt": "new"})
        assert alone["choices"][0]["message"]["content"] == answers[-1]
    assert len(set(answers)) == 3


def test_two_images_are_two_prefixes_and_the_same_image_is_a_hit(served: Served) -> None:
    text = f"Look again. {QUESTION}"
    first, second = chat(GREEN, text=text), chat(image(9, 9, 200), text=text)
    assert asked(served, first)[1] == 0
    assert routed(served, second) < IMAGE_TOKENS // 4  # the template's text before the image
    assert asked(served, second)[1] == 0
    assert routed(served, first) >= IMAGE_TOKENS
    assert asked(served, first)[1] >= IMAGE_TOKENS


def test_text_before_an_image_is_found_by_kv_events(served: Served) -> None:
    """vLLM names the image in the blocks that contain it."""
    system = {"role": "system", "content": "Be short. " * 150}

    def with_system(url: str) -> dict[str, Any]:
        body = chat(url)
        return body | {"messages": [system, *body["messages"]]}

    prefill = f"{served.workers()['prefill']}/v1/chat/completions"
    served.post(prefill, served.token, with_system(GREEN))
    until("events of the text", lambda: routed(served, with_system(RED)) >= 2 * BLOCK)
    assert asked(served, with_system(RED))[1] >= 2 * BLOCK


def test_other_apis_take_images(served: Served) -> None:
    media, data = RED.removeprefix("data:").split(";base64,")
    source = {"type": "base64", "media_type": media, "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "And now?"}]
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    status, answer = send(f"{served.url}/messages", served.key, json.dumps(body).encode())
    assert (status, answer.get("usage", {}).get("output_tokens")) == (200, 4), answer
    parts = [{"type": "input_image", "image_url": RED, "detail": "auto"}]
    parts += [{"type": "input_text", "text": "And now?"}]
    body = {"model": MODEL, "max_output_tokens": 4, "input": [{"role": "user", "content": parts}]}
    status, answer = send(f"{served.url}/responses", served.key, json.dumps(body).encode())
    assert (status, answer.get("usage", {}).get("output_tokens")) == (200, 4), answer
