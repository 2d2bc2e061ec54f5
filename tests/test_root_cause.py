"""Which line of a dead engine's log is quoted; tests/engine_logs holds logs of real engines."""

from pathlib import Path

import pytest

from hpc_dynamo.engines.root_cause import SELF_KILLED, killed_itself, last_line, root_cause

LOGS = Path(__file__).parent / "engine_logs"

TRACE = (
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    raise g()\n    ^^^^^\n'
)
LEAKS = (
    "nanobind: leaked 4 instances!\n"
    ' - leaked instance 0x7f of type "A"\n'
    "nanobind: this is likely caused by a reference counting issue in the binding code.\n"
    "See https://nanobind.readthedocs.io/en/latest/refleaks.html\n"
)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", ""),
        ("loading weights\nloaded 3 of 8\n", "loaded 3 of 8"),
        (f"{TRACE}ValueError: too long\n", "ValueError: too long"),
        (
            f"{TRACE}torch.cuda.OutOfMemoryError: CUDA out of memory.\n",
            "OutOfMemoryError: CUDA out of memory.",
        ),
        (f"{TRACE}AssertionError\n", "AssertionError"),
        (f"{TRACE}ImportError: \n\nfoo requires bar\n", "ImportError: foo requires bar"),
        # What follows an exception is no cause.
        (f"{TRACE}AssertionError: x\n{LEAKS}", "AssertionError: x"),
        (f"loaded\n{LEAKS}", "loaded"),
        ("See https://nanobind.readthedocs.io\n", "See https://nanobind.readthedocs.io"),
        # A process that reports another's end.
        (
            f"(EngineCore_DP0 pid=7) {TRACE}(EngineCore_DP0 pid=7) ValueError: no memory\n"
            f"(APIServer pid=1) {TRACE}(APIServer pid=1) RuntimeError: Engine core initialization "
            "failed. See root cause above. Failed core proc(s): {}\n",
            "ValueError: no memory",
        ),
        (
            f"{TRACE}RuntimeError: Engine core initialization failed. See root cause above.\n",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ),
        (
            "ERROR 11-29 22:00:01 [core.py:844] ValueError: bad value\n"
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack "
            "trace (above) for the root cause.\n",
            "ValueError: bad value",
        ),
        (
            "[2026-11-29 22:00:00 TP0] Scheduler hit an exception: Traceback (most recent call "
            'last):\n  File "a.py", line 1\nRuntimeError: Not enough memory. Please try to '
            f"increase --mem-fraction-static.\n\n[2026-11-29 22:00:01] {SELF_KILLED}. It usually "
            "means the child failed.\n[2026-11-29 22:00:01] kill_process_tree called: pid=1\n",
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        ),
        (
            "[11/29/2026-22:00:00] [TRT-LLM] [E] Failed to initialize executor\n"
            "[rank0]: ValueError: the engine has another tp_size\n"
            "RuntimeError: Executor worker returned error\n",
            "ValueError: the engine has another tp_size",
        ),
        (
            "1: EngineError: gone\nsrun: error: n1: task 1: Exited with exit code 1\n",
            "EngineError: gone",
        ),
        ("srun: error: no such node\n", "srun: error: no such node"),
        (
            "usage: api_server.py [-h]\napi.py: error: no such option\n",
            "api.py: error: no such option",
        ),
        # Pydantic: the message is below, without what was given.
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, too large. [type=value_error, input_value=…]\n"
            "    For further information visit https://errors.pydantic.dev/2.12/v/value_error\n",
            "ValidationError: 1 validation error for ModelConfig: Value error, too large.",
        ),
        (
            "ValidationError: 1 validation error for A\ndtype\n  Input should be 'auto' [type=x]\n",
            "ValidationError: 1 validation error for A: dtype: Input should be 'auto'",
        ),
        # Python sources and log texts that mention errors.
        (f"{TRACE}OSError: x\nINFO 11-29 22:00:02 [x.py:1] Errors: 0\n", "OSError: x"),
        ("    raise ValueError(\nmodel loaded: no Error: fine\n", "model loaded: no Error: fine"),
    ],
)
def test_the_cause_of_an_end(log: str, cause: str) -> None:
    assert root_cause(log) == cause


def test_a_long_message_is_shortened() -> None:
    assert len(root_cause(f"ValueError: {'x' * 5000}")) == 400


def test_an_engine_that_kills_itself_is_told_from_one_that_is_killed() -> None:
    assert killed_itself(f"ValueError: x\n[…] {SELF_KILLED}. It usually means the child failed.")
    assert not killed_itself("loading weights")
    assert not killed_itself(f"{SELF_KILLED}\nRank 0 scheduler died (exit code: -9)")


def test_after_a_kill_from_outside_the_last_line_counts() -> None:
    """An exception that was caught hours ago is no cause."""
    assert last_line("ValueError: caught\nloading weights 40 %\n") == "loading weights 40 %"
