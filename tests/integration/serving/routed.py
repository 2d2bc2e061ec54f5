"""Run of `hpc-dynamo route` in front of simulators."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_dynamo.run import Run
from tests.integration.serving.served import Served
from tests.support.runs import hpc_dynamo
from tests.support.simulator import KEY

Row = dict[str, Any]


@contextmanager
def routing(folder: Path, *words: str, name: str = "r", engine_key: str = KEY) -> Iterator[Served]:
    """Yield a detached route, from its first response to the end of its last process."""
    (folder / "engines.key").write_text(f"{engine_key}\n")
    key = "route.api_key_file=engines.key"
    done = hpc_dynamo("route", *words, key, f"name={name}", "--detach", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    served = Served(Run(folder / "runs" / name).attempts()[-1])
    try:
        served.wait()
        yield served
    finally:
        if "client" in vars(served):
            served.client.close()
        served.stop()


def rows(served: Served) -> list[Row]:
    found: list[Row] = served.ask("GET", "/v1/workers").json["data"]
    return found
