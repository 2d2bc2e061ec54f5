"""A chat template of the model that computes endlessly for some chats."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.serving.served import Reply, Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow_fault

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TRAP = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}"


def chat(served: Served, content: str) -> Reply:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    return served.post("/v1/chat/completions", body)


def test_endless_template_delays_no_other_chat(tmp_path: Path, fault: FaultRecorder) -> None:
    folder = byte_tokenizer(tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(TRAP + template.read_text())
    with (
        serving(tmp_path, "topology=aggregated", f"model.path={folder}") as served,
        ThreadPoolExecutor(1) as pool,
    ):
        assert chat(served, "Hi").status == 200
        frontends = served.frontends()
        row = fault("chat template that loops endlessly", "its request gets 400; others continue")
        hostile = pool.submit(chat, served, "loop")
        others = list[int]()
        while not hostile.done():
            others.append(chat(served, "Hi").status)
        others.append(chat(served, "Hi").status)
        row.recovered()
        row.requests(len(others), sum(status != 200 for status in others))
        assert set(others) == {200}
        assert len(others) > 1
        refused = hostile.result()
        assert refused.status == 400
        assert "took more than 3 s of CPU time" in refused.json["error"]["message"]
        assert served.frontends() == frontends
