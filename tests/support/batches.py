"""A batch in the background, into which a test injects faults."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.runs import HANG_S, each_once, hpc_dynamo, until_results, write_prompts


@dataclass(frozen=True)
class BackgroundBatch:
    """A batch whose command runs in a thread."""

    run: Path
    ids: list[str]
    done: "Future[subprocess.CompletedProcess[str]]"

    def wait_for_results(self, count: int, timeout_s: float = 60) -> None:
        """Wait until it has `count` results."""
        until_results(self.run, count, timeout_s)

    def succeed(self) -> None:
        """Assert that it ends well, with each request once."""
        done = self.done.result()
        assert done.returncode == 0, done.stdout + done.stderr
        each_once(self.run, self.ids)


@contextmanager
def background_batch(
    folder: Path, requests: int, *words: str, timeout_s: float = HANG_S
) -> Iterator[BackgroundBatch]:
    """Run a batch of `requests` prompts; wait for its end on leaving the context."""
    ids = write_prompts(folder / "p.jsonl", requests)
    with ThreadPoolExecutor(1) as pool:
        argv = ("batch", *words, "input=p.jsonl")
        done = pool.submit(hpc_dynamo, *argv, cwd=folder, timeout_s=timeout_s)
        yield BackgroundBatch(folder / "runs/p", ids, done)
