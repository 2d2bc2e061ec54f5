"""Jobs with the prefill/decode protocol of TensorRT-LLM, with agents, simulators and NIXL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.serving.served import MODEL, Served, kill, serving
from tests.support.runs import SIMULATOR, answers, hpc_dynamo, latest, until, write_prompts

pytestmark = pytest.mark.slow

TRTLLM = "engine.args.pd-protocol=trtllm"
HANDED = "router.transfer_cost_tokens=0"  # also short prompts
FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
MORE: dict[str, Any] = {"model": MODEL, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = (TRTLLM, HANDED, "topology.decode.workers=2", "engine.max_restarts=20")
    with serving(tmp_path_factory.mktemp("trtllm"), *words) as job:
        yield job


def moved(served: Served) -> float:
    """Return the bytes that all decode workers have pulled."""
    name = "vllm:nixl_bytes_transferred_sum"
    return sum(served.engine(row["url"])[name] for row in served.workers()["decode"])


def test_trtllm_completions_and_chat(served: Served) -> None:
    ai, before = served.client, moved(served)
    whole = ai.completions.create(prompt=f"one {FABLE}", max_tokens=20, **MORE)
    stream = ai.completions.create(prompt=f"one {FABLE}", max_tokens=20, stream=True, **MORE)
    assert "".join(event.choices[0].text for event in stream) == whole.choices[0].text
    assert moved(served) > before
    before, said = moved(served), [{"role": "user", "content": f"two {FABLE}"}]
    chat: Any = ai.chat.completions.create
    message = chat(messages=said, max_tokens=20, **MORE).choices[0].message.content
    events = list(chat(messages=said, max_tokens=20, stream=True, **MORE))
    assert "".join(event.choices[0].delta.content or "" for event in events) == message
    assert moved(served) > before


def test_trtllm_client_transfer_fields_are_ignored(served: Served) -> None:
    theirs = {"disaggregated_params": {"request_type": "generation_only"}}
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 2, **theirs}
    assert served.post("/v1/completions", body).status == 200


def test_trtllm_samples_come_from_decode_worker(served: Served) -> None:
    made = served.client.completions.create(prompt=f"three {FABLE}", n=3, max_tokens=9, **MORE)
    assert len({choice.text for choice in made.choices}) == 3


def test_trtllm_dead_decode_worker_is_replaced(served: Served) -> None:
    prompt, tokens = f"dying {FABLE}", 700
    decoders = until("two", lambda: (w := served.workers()["decode"])[1:] and w, 30)
    urls = {row["url"] for row in decoders}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(said, served, prompt, tokens)
        (url,) = until("it decodes", lambda: busy(served) & urls, 20)
        kill(served.pid_of(url))
        assert answer.result(60) == said(served, prompt, tokens)


def said(served: Served, prompt: str, tokens: int) -> str:
    made = served.client.completions.create(prompt=prompt, max_tokens=tokens, **MORE)
    assert made.usage
    assert made.usage.completion_tokens == tokens
    return str(made.choices[0].text)


def busy(served: Served) -> set[str]:
    """Return the URLs of busy engines."""
    return {url for url, load in served.loads().items() if load}


def test_trtllm_prefill_without_transfer_is_named(tmp_path: Path) -> None:
    """The engine has no transceiver, as if the user's options had removed it."""
    with serving(tmp_path, TRTLLM, HANDED, "engine.args.role=aggregated") as job:
        with pytest.raises(openai.APIStatusError) as failed:
            job.client.completions.create(prompt=FABLE, max_tokens=9, **MORE)
        assert failed.value.status_code == 502
        assert "has no disaggregated_params" in failed.value.message


def test_trtllm_batch(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 30)
    for protocol in ("trtllm", "vllm"):
        words = (f"engine.args.pd-protocol={protocol}", f"name={protocol}", "input=prompts.jsonl")
        done = hpc_dynamo("batch", *SIMULATOR, HANDED, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        outcome = latest(tmp_path / "runs" / protocol).outcome()
        assert outcome is not None
        assert outcome.summary is not None
        assert outcome.summary.kv_bytes > 0, "NIXL moved nothing"
    found = [answers(tmp_path / "runs" / name / "output.jsonl") for name in ("trtllm", "vllm")]
    assert list(found[0]) == ids
    assert found[0] == found[1]


def test_unknown_pd_protocol_is_rejected_before_submission(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    words = ("engine.args.pd-protocol=trtlm", "input=prompts.jsonl")
    done = hpc_dynamo("batch", *SIMULATOR, *words, cwd=tmp_path)
    assert done.returncode == 3
    assert "did you mean 'trtllm'?" in done.stderr
