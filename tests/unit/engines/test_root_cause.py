"""The line quoted from the log of an engine that ended; `logs` holds logs of real engines."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.config import Config, Engine, Model, Role
from hpc_dynamo.engines import Placement
from hpc_dynamo.engines.root_cause import killed_itself, last_line, root_cause
from hpc_dynamo.process.session import SessionMonitor
from hpc_dynamo.run import Run, Secrets
from hpc_dynamo.topology import Plan, Shard, Worker

LOGS = Path(__file__).parent / "logs"

TRACE = (
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    raise g()\n    ^^^^^\n'
)
# As SGLang 0.5.23 writes them (managers/scheduler.py, entrypoints/engine.py, tokenizer_manager.py).
SGLANG = f"""\
[2026-11-29 22:00:00] server_args=ServerArgs(model_path='/models/m', device='cpu')
[2026-11-29 22:00:09 TP0] Scheduler hit an exception: {TRACE}\
ModuleNotFoundError: No module named 'vllm'

[2026-11-29 22:00:09] Received sigquit from a child process. It usually means the child failed.
[2026-11-29 22:00:09] kill_process_tree called: parent_pid=7, include_parent=True, pid=7
"""
SGLANG_LATER = f"""\
[2026-11-29 22:10:00 TP1] Scheduler hit an exception: {TRACE}RuntimeError: CUDA error: an illegal \
memory access was encountered
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

[2026-11-29 22:10:01] SIGQUIT received. signum=3, frame=None. It usually means one child failed.
[2026-11-29 22:10:01] kill_process_tree called: parent_pid=7, include_parent=True, pid=7
"""
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
        (SGLANG, "ModuleNotFoundError: No module named 'vllm'"),
        (SGLANG_LATER, "RuntimeError: CUDA error: an illegal memory access was encountered"),
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
def test_root_cause_of_log(log: str, cause: str) -> None:
    assert root_cause(log) == cause


REAL = {
    "vllm-empty": "ModelConfig: Value error, Invalid repository ID or local directory specified: ",
    "vllm-maxlen": "ModelConfig: Value error, User-specified max_model_len (999999) is",
    "vllm-nohub": "LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for",
    "vllm-badoption": "api_server.py: error: unrecognized arguments: --no-such-option",
    # Ended by SIGTERM while loading: the log has no cause.
    "vllm-broken": "Exception: WorkerProc initialization failed due to an exception in a",
}


@pytest.mark.parametrize("name", REAL)
def test_root_cause_of_real_logs(name: str) -> None:
    assert REAL[name] in root_cause((LOGS / f"{name}.txt").read_text())


def part(tmp_path: Path, engine: str, log: str) -> EngineProcess:
    """One whose engine has written this log."""
    run = Run(tmp_path / "run")
    run.create(Secrets(token="t", public="p", private="p"))
    layout = Plan(workers=(), nodes=1, gpus_per_node=0)
    config = replace(Config(), engine=Engine(name=engine), model=Model(path="/models/m"))
    attempt = run.new_attempt(config, layout)
    shard = Shard(node=0, gpus=())
    worker = Worker(rank=0, role=Role.aggregated, shards=(shard,))
    place = Placement(worker, "127.0.0.1", (1, 2), (), token="t")
    made = EngineProcess(attempt, config, place, "n1", SessionMonitor(1.0))
    attempt.worker_log(0).write_text(log)
    return made


def test_sigkill_by_sglang_itself_is_not_out_of_memory(tmp_path: Path) -> None:
    error = part(tmp_path, "sglang", SGLANG).exit_error(128 + 9)
    assert "exited because one of its processes failed: ModuleNotFoundError" in error.message
    assert "memory" not in str(error)


def test_external_sigkill_suggests_more_memory(tmp_path: Path) -> None:
    log = f"{TRACE}ValueError: caught\nLoading safetensors 40 %\n"
    error = part(tmp_path, "vllm", log).exit_error(128 + 9)
    assert error.message.endswith("was killed by signal 9: Loading safetensors 40 %")
    assert "engine.memory_gb" in error.hint


def test_hint_matches_root_cause(tmp_path: Path) -> None:
    """An earlier sign in the log does not count."""
    log = f"{TRACE}OSError: [Errno 98] Address already in use\n{TRACE}{OOM}\n{LEAKS}"
    error = part(tmp_path, "vllm", log).exit_error(1)
    assert error.message.endswith(f"exited with code 1: {OOM}")
    assert "gpu-memory-utilization" in error.hint


OOM = "OutOfMemoryError: CUDA out of memory."


def test_long_root_cause_is_shortened() -> None:
    assert len(root_cause(f"ValueError: {'x' * 5000}")) == 400


def test_self_kill_is_distinguished_from_external_kill() -> None:
    assert killed_itself(SGLANG)
    assert killed_itself(SGLANG_LATER)
    assert not killed_itself("loading weights")
    assert not killed_itself(f"{SGLANG}RuntimeError: Rank 0 scheduler died (exit code: -9). If …")


def test_external_kill_reports_last_log_line() -> None:
    """An exception that was caught hours ago is no cause."""
    assert last_line("ValueError: caught\nloading weights 40 %\n") == "loading weights 40 %"
