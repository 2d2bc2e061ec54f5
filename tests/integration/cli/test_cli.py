"""The command line: its output and its exit codes.

One test of each kind starts a child process; the tables call `main`, which is faster.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.config import Config
from hpc_dynamo.messages import BatchSummary, JobRecord, NodeRecord, Outcome, Progress, Roster
from hpc_dynamo.run import Run, Secrets, write_json
from hpc_dynamo.topology import Plan
from tests.support.runs import SIMULATOR, hpc_dynamo, write_prompts
from tests.support.terminal import Call, going_on, new_run, printed, refused


def test_plan_refuses_two_kinds_of_output(call: Call) -> None:
    said = call("plan", "--sbatch", "--commands", "engine=simulator").stderr
    assert "not allowed with argument" in said


def rows(table: str) -> list[list[str]]:
    """Return the cells of a table drawn by rich, without its header."""
    lines = [line for line in table.splitlines() if line.startswith(("│", "|"))]
    return [[cell.strip() for cell in line.strip("│|").split("│")] for line in lines]


def test_plan_shows_node_rank_role_and_gpus(tmp_path: Path) -> None:
    words = ["cluster.gpus_per_node=4", "topology.prefill.pipeline_parallel=6", "topology.nodes=3"]
    text = printed(hpc_dynamo("plan", *words, cwd=tmp_path))
    assert "vllm, disaggregated: 3 node(s)" in text
    assert rows(text) == [
        ["0", "0 (shard 1 of 2)", "prefill", "0,1,2"],
        ["0", "1", "decode", "3"],
        ["1", "0 (shard 2 of 2)", "prefill", "0,1,2"],
        ["2", "-", "idle", "-"],
    ]
    assert "each node: 34 CPUs, 260 GB, 4 GPUs; time 60 min" in text


def test_plan_shows_all_memory_of_a_node(call: Call) -> None:
    words = ("engine=simulator", "cluster.cpus_per_node=8", "cluster.memory_gb_per_node=0")
    assert "each node: 8 CPUs, all memory; time" in printed(call("plan", *words))


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "x%j"])
@pytest.mark.parametrize("verb", ["plan", "batch"])
def test_name_that_cannot_be_a_folder_is_refused(
    call: Call, tmp_path: Path, verb: str, name: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    refused(call(verb, *SIMULATOR, "input=prompts.jsonl", f"name={name}"), "name=", name)
    assert not (tmp_path / "runs").exists()


def test_plan_refuses_extra_options_with_too_few_gpus(call: Call) -> None:
    words = ("cluster.gpus_per_node=4", "cluster.slurm.extra.gpus-per-node=2")
    for how in ((), ("--sbatch",)):
        said = call("plan", *how, *words)
        refused(said, "extra.gpus-per-node=2 requests 2 GPUs", "cluster.gpus_per_node=2")


def test_plan_without_gpus_shows_the_nodes(call: Call) -> None:
    text = printed(call("plan", "engine=simulator", "topology.nodes=2"))
    assert rows(text) == [["0", "0", "prefill", "-"], ["1", "1", "decode", "-"]]


def test_plan_writes_nothing(call: Call, tmp_path: Path) -> None:
    printed(call("plan", "engine=simulator"))
    assert list(tmp_path.iterdir()) == []


def test_plan_sbatch_prints_only_the_script(tmp_path: Path) -> None:
    words = ["engine=simulator", "topology.nodes=3", "input=my prompts.jsonl"]
    script = printed(hpc_dynamo("plan", "--sbatch", *words, cwd=tmp_path))
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert "#SBATCH --nodes=3\n" in script
    assert "'input=my prompts.jsonl'" in script


def test_plan_sbatch_with_verb_serve(call: Call) -> None:
    script = printed(call("plan", "--sbatch", "--verb", "serve", "engine=simulator"))
    assert "exec hpc-dynamo \\\n  serve \\\n  engine=simulator \\\n" in script
    assert "task: serve" in printed(call("plan", "--show", "--verb", "serve", "engine=simulator"))


def test_plan_dry_run_prints_the_submitted_script(call: Call, tmp_path: Path) -> None:
    words = ("engine=simulator", "name=my run", "cluster.slurm.signal_before_end_s=120")
    script = printed(call("plan", "--dry-run", "--verb", "serve", *words))
    folder = tmp_path / "runs/my run/attempts/1/submitit"
    assert "#SBATCH --signal=USR2@120\n" in script
    assert f"#SBATCH --output='{folder}/%j_0_log.out'\n" in script
    assert f"-m hpc_dynamo.launch.submitit_task '{folder}'\n" in script
    assert list(tmp_path.iterdir()) == [], "a plan leaves nothing"
    refused(call("plan", "--dry-run", "engine=simulator"), "input is not set", "prompts.jsonl")


def test_plan_show_prints_every_field(call: Call) -> None:
    text = printed(call("plan", "--show", "engine=simulator"))
    for name in msgspec.to_builtins(Config()):
        assert f"\n{name}:" in f"\n{text}"
    assert "name: simulator" in text


def test_plan_sbatch_keeps_the_folder_of_site_files(call: Call, tmp_path: Path) -> None:
    (tmp_path / "site" / "cluster").mkdir(parents=True)
    (tmp_path / "site" / "cluster" / "alps.yaml").write_text("slurm:\n  account: g42\n")
    words = ["--sbatch", "--config-dir", "site", "engine=simulator", "cluster=alps"]
    script = printed(call("plan", *words))
    assert "#SBATCH --account=g42" in script
    assert "--config-dir" in script


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["topology.decode.worker=2"], ["topology.decode.worker is not", "did you mean workers?"]),
        (["topology.decode.workers=two"], ["topology.decode.workers=two"]),
        (["engine=vlm"], ["engine='vlm' is not known", "did you mean 'vllm'? known: "]),
        ([], ["cluster.gpus_per_node is not set", "cluster.gpus_per_node=4"]),
        (
            ["cluster.gpus_per_node=4", "topology.nodes=1", "topology.decode.tensor_parallel=4"],
            ["topology.nodes=1", "5 GPUs", "try: topology.nodes=2"],
        ),
        (
            ["cluster.gpus_per_node=4", "model.path=m", "engine.args.block-size=none"],
            ["engine.args.block-size=none is not", "try: engine.args.block-size=16"],
        ),
        (["engine=simulator", "topology.decode.workers=0"], ["topology.decode.workers=0 must be"]),
        (["engine=simulator", "cluster.slurm.time=soon"], ["cluster.slurm.time=soon", "HH:MM:SS"]),
    ],
)
def test_plan_error_names_field_value_and_remedy(
    words: Sequence[str], parts: Sequence[str], call: Call
) -> None:
    refused(call("plan", *words), *parts)


@pytest.mark.parametrize("verb", ["batch", "serve", "profile", "plan"])
def test_engine_options_are_checked_before_submission(
    verb: str, call: Call, tmp_path: Path
) -> None:
    write_prompts(tmp_path / "p.jsonl", 1)
    words = (*OPTIONS, *(["input=p.jsonl"] if verb == "batch" else []))
    field = "topology.aggregated.tensor_parallel"
    what = "engine.args.tp: hpc-dynamo sets --tensor-parallel-size of each vllm worker itself"
    refused(call(verb, *words, "engine.args.tp=4"), what, f"by {field}\n  try: {field}=4")
    what = "--max-modle-len is not an option of vllm"
    meant = "did you mean engine.args.max-model-len? engine.check_options=false if"
    refused(call(verb, *words, "engine.args.max-modle-len=4"), what, meant)
    assert not (tmp_path / "runs").exists()


def test_doctor_refuses_a_run(call: Call, tmp_path: Path) -> None:
    folder = new_run(tmp_path / "runs" / "p").run.path
    for word in (str(folder), "runs/p", "p"):
        said = f"{word} is a run; doctor takes no run, only FIELD=VALUE overrides"
        refused(call("doctor", word), said, "try: hpc-dynamo doctor")


def test_error_of_a_real_process(tmp_path: Path) -> None:
    done = hpc_dynamo("plan", "topology.decode.worker=2", cwd=tmp_path)
    refused(done, "topology.decode.worker is not a field", "\n  try: did you mean workers?")
    assert done.stdout == ""


LOCAL = ("engine=simulator", "cluster.launcher=local")
OPTIONS = (
    *("engine=vllm", "cluster.launcher=local", "cluster.gpus_per_node=4"),
    *("model.path=m", "topology=aggregated"),
)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([*LOCAL], ["input is not set", "input=prompts.jsonl"]),
        ([*LOCAL, "input=none.jsonl"], ["none.jsonl: no such file"]),
        ([*LOCAL, "input=empty.jsonl"], ["contains no request"]),
        (
            [*LOCAL, "input=bad.jsonl"],
            ["bad.jsonl:2: custom_id 'a' is also on line 1", ":3: not JSO"],
        ),
        ([*LOCAL, "input=good.jsonl", "name=../x"], ["name='../x' must be a plain folder name"]),
        (["engine=vllm-cpu", LOCAL[1], "input=good.jsonl"], ["model.path is not set"]),
        (
            [
                *("engine=vllm", LOCAL[1], "input=good.jsonl", "model.path=m"),
                *("cluster.gpus_per_node=2", "topology.decode.pipeline_parallel=3"),
            ],
            ["topology.decode: 3 GPUs per worker are [2, 1] on 2 nodes"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refused_batch_writes_nothing(
    words: Sequence[str], parts: Sequence[str], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "good.jsonl").write_text('{"prompt": "x"}\n')
    bad = '{"custom_id": "a", "prompt": "x"}\n' * 2 + "nonsense\n"
    (tmp_path / "bad.jsonl").write_text(bad)
    refused(call("batch", *words), *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["engine=vllm-cpu", LOCAL[1]], ["model.path is not set"]),
        ([*LOCAL, "name=../x"], ["name='../x' must be a plain folder name"]),
        ([*LOCAL, "serve.port=70000"], ["serve.port=70000 must be from 0 to 65535"]),
        ([*LOCAL, "serve.tls_cert=good.pem"], ["serve.tls_cert and serve.tls_key need each other"]),
        ([*LOCAL, "serve.tls_cert=no", "serve.tls_key=good.pem"], ["serve.tls_cert=no: no such"]),
        ([*LOCAL, "serve.api_key_file=no"], ["serve.api_key_file=no: no such file"]),
        ([*LOCAL, "serve.api_key_file=empty"], ["empty is empty", "openssl rand -hex 32"]),
        (
            [*LOCAL, "router=fastest"],
            ["router='fastest' is not known", "least_loaded, power_of_two"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refused_serve_writes_nothing(
    words: Sequence[str], parts: Sequence[str], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "good.pem").write_text("x")
    (tmp_path / "empty").write_text("\n")
    refused(call("serve", *words), *parts)
    assert not (tmp_path / "runs").exists()


def test_serve_refuses_a_folder_of_results(call: Call, tmp_path: Path) -> None:
    attempt = new_run(tmp_path / "runs" / "x")
    attempt.run.write_identity(Path("/in.jsonl"), "f")
    done = call("serve", *LOCAL, "name=x")
    refused(done, "name=x:", "holds results (/in.jsonl)", "name=x-2 for a run of its own")
    assert len(attempt.run.attempts()) == 1


@pytest.mark.parametrize("verb", ["batch", "serve"])
def test_run_in_use_is_refused_and_unchanged(verb: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    attempt = new_run(tmp_path / "runs" / "x", replace(Config(), name="x"))
    key = attempt.run.api_key()
    words = [*LOCAL, "name=x", "input=in.jsonl", "overwrite=true"]
    with going_on(attempt):
        refused(call(verb, *words), "is in use: attempt 1 is running", "hpc-dynamo stop", code=1)
    assert (len(attempt.run.attempts()), attempt.run.api_key()) == (1, key)


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """Files of a run `done` with one successful attempt."""
    run = Run(tmp_path / "runs" / "done")
    run.create(Secrets(token="t", public="p", private="p"))
    attempt = run.new_attempt(Config(), Plan(1, 0, ()))
    here = NodeRecord(node=0, host="n7", address="10.0.0.7", pid=1, log="")
    write_json(attempt.roster_file, Roster(nodes=(here,), method="mpi", seconds=0.123))
    host, pid = os.uname().nodename, 2**22 + 1  # beyond what Linux gives
    write_json(attempt.job_file, JobRecord(launcher="local", job_id="1", host=host, pid=pid))
    progress = Progress(total=3, done=3, elapsed_s=2.0, completion_tokens=10)
    summary = BatchSummary(progress=progress, seconds=2.0, kv_bytes=1234567, decode_busy=0.5)
    write_json(attempt.outcome_file, Outcome(exit_code=0, summary=summary))
    return run


@pytest.mark.parametrize("words", [[], ["name=done"], ["runs/done"], ["done"]])
def test_status_finds_a_run_by_nothing_name_or_folder(
    words: list[str], finished: Run, call: Call
) -> None:
    text = printed(call("status", *words))
    assert f"attempt 1 ended: all done\nrun folder: {finished.path}\n" in text
    assert "roster by mpi in 0.123 s: n7 10.0.0.7" in text
    assert "3 answered, 0 failed" in text
    assert "1,234,567" in text


def test_stop_of_an_ended_run_succeeds(finished: Run, tmp_path: Path) -> None:
    assert "is not running" in printed(hpc_dynamo("stop", "name=done", cwd=tmp_path))


@pytest.mark.parametrize("verb", ["status", "logs", "chat", "stop"])
def test_unknown_run_lists_the_known_runs(verb: str, finished: Run, call: Call) -> None:
    refused(call(verb, "name=don"), "runs/don is not a run", "known: done")


@pytest.mark.parametrize("verb", ["status", "logs", "chat", "stop"])
def test_verbs_without_any_run_are_refused(verb: str, call: Call) -> None:
    refused(call(verb), "runs holds no serving run" if verb == "chat" else "runs holds no run")
    refused(call(verb, "name=x"), "runs/x is not a run", "known: none")


def test_unknown_verb_exits_with_2(tmp_path: Path) -> None:
    done = hpc_dynamo("serv", cwd=tmp_path)
    assert done.returncode == 2, "as argparse does it"
    assert "plan" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_commands_prints_shell_commands_of_engines(call: Call) -> None:
    model = "model.path='/shared/a model'"
    own = ("engine.env.A=x y", "engine.decode.args.max-num-batched-tokens=512")
    words = (model, *own, "engine.python=/env/bin/python", "cluster.gpus_per_node=4")
    shown = printed(call("plan", "--commands", *words))
    prefill, decode = shown.split("\n\n")
    assert prefill.startswith("# worker 0, prefill, on <node-0>\nenv \\\n")
    assert decode.startswith("# worker 1, decode, on <node-0>\nenv \\\n")
    for text in (prefill, decode):
        lines = text.splitlines()
        assert "  'A=x y' \\" in lines
        assert "  VLLM_API_KEY=<key> \\" in lines
        assert "  VLLM_NIXL_SIDE_CHANNEL_PORT=<port-1> \\" in lines
        assert "  /env/bin/python -m vllm.entrypoints.openai.api_server \\" in lines
        assert "  --model '/shared/a model' \\" in lines
        assert "  --host <node-0> \\" in lines
    assert "CUDA_VISIBLE_DEVICES=1" in decode
    assert decode.splitlines()[-1] == "  --max-num-batched-tokens 512"
    assert "--max-num-batched-tokens" not in prefill


def test_plan_commands_shows_container_and_files(call: Call) -> None:
    container = ("engine.container.kind=apptainer", "engine.container.image=/shared/trtllm.sif")
    words = ("engine=trtllm", "model.path=/shared/llama", "cluster.gpus_per_node=4", *container)
    shown = printed(call("plan", "--commands", *words))
    assert "  apptainer exec \\\n  --cleanenv \\\n" in shown
    assert "  --extra_llm_api_options <logs>/worker-1.yaml" in shown
    assert '# worker-1.yaml in <logs>\n{\n "return_perf_metrics": true,' in shown


def test_plan_commands_shows_the_srun_step_of_pyxis(call: Call) -> None:
    container = ("engine.container.kind=pyxis", "engine.container.image=/shared/vllm.sqsh")
    words = ("model.path=/shared/llama", "cluster.gpus_per_node=4", *container)
    prefill, decode = printed(call("plan", "--commands", *words)).split("\n\n")
    assert "  srun \\\n  --mpi=none \\\n  --overlap \\\n  --job-name=worker-0-0 \\" in prefill
    assert "  --nodelist=<node-0> \\" in decode.splitlines()
    assert "  --container-image=/shared/vllm.sqsh \\" in decode.splitlines()
    assert "rank.py 1 python3 -m vllm.entrypoints" in decode
    assert "CUDA_VISIBLE_DEVICES" not in decode


def test_plan_commands_refuses_an_unset_model(call: Call) -> None:
    refused(call("plan", "--commands", "cluster.gpus_per_node=4"), "model.path is not set")
