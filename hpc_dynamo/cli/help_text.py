"""What `--help` teaches, and the options of each verb."""

from argparse import ArgumentParser
from os.path import expanduser

from hpc_dynamo.cli.commands import doctor, plan, report, route, simulate
from hpc_dynamo.cli.unknown_options import path

DESCRIPTION = """\
LLM serving and batch inference inside one Slurm job: an OpenAI endpoint, or a file of prompts.
Prefill and decode workers run over the nodes of an allocation, KV cache moves between them by
NIXL. On a machine without Slurm the same command runs locally."""

OVERRIDES = """\
overrides are FIELD=VALUE, the value as it is: it needs quotes for the shell only. GROUP=FILE takes
a file of conf/GROUP/. More: docs/configuration.md. The fields:
  engine=vllm|vllm-cpu|sglang|trtllm|simulator   engine.python=/env/bin/python
  engine.args.max-model-len=8192    (any option of the engine; of one role's workers alone:)
  engine.decode.args.max-num-batched-tokens=512   engine.prefill.env.NAME=VALUE
  recipe=llama-70b-2p2d-vllm        (a model on a known layout; further words win: docs/recipes.md)
  topology=aggregated|disaggregated topology.prefill.workers=2 topology.decode.tensor_parallel=4
  cluster=auto|slurm|local          cluster.slurm.partition=gpu cluster.slurm.time=04:00:00
  cluster.hardware.KIND.partition=… topology.decode.hardware=KIND (pools on nodes of two kinds)
  model.path=/shared/models/llama   input=prompts.jsonl   name=my-run   runs_dir=/scratch/me
  models.NAME.path=…                models.NAME.topology=… models.NAME.engine.args.…=…
  serve.port=8000                   router=kv|least_loaded|round_robin
  planner=off|load|sla              planner.interval_s=5 planner.ttft_s=2 planner.itl_s=0.04
`hpc-dynamo plan --show` prints all of them with their values."""

EXIT_CODES = """\
exit codes:
  0    done; also after `hpc-dynamo stop`
  1    failed; trying again may help
  2    an unknown verb or option
  3    refused; trying again cannot help before something is changed; no request was answered
  4    the batch is finished, but some of its requests failed
  130  ended by Ctrl-C"""

EXAMPLES = {
    "plan": """\
  hpc-dynamo plan engine=simulator topology.prefill.workers=2
  hpc-dynamo plan cluster.gpus_per_node=4 topology.prefill.pipeline_parallel=6
  hpc-dynamo plan --dry-run --verb serve cluster.gpus_per_node=8 > what-serve-submits.sbatch
  hpc-dynamo plan --sbatch cluster.gpus_per_node=8 cluster.slurm.partition=gpu > job.sbatch
  hpc-dynamo plan --commands recipe=llama-70b-2p2d-sglang cluster.gpus_per_node=8""",
    "simulate": """\
  hpc-dynamo simulate --trace trace.jsonl topology.prefill.workers=4 topology.decode.workers=4
  hpc-dynamo simulate --trace trace.jsonl topology.prefill.workers=8 topology.decode.workers=8 \\
      planner.mode=sla planner.ttft_s=2 planner.itl_s=0.04 --picture roles.png
  hpc-dynamo simulate --trace trace.jsonl --search topology.prefill.workers=8 \\
      topology.decode.workers=8 simulate.timing_model=a100-8b simulate.speed=2
  the real router and planner before modelled engines; an hour of load takes seconds
  a line of the trace: {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0]}
      milliseconds, tokens, and an id for each 512 tokens of the prompt: equal ids, equal tokens""",
    "doctor": """\
  hpc-dynamo doctor                 inside salloc: all nodes of the allocation
  hpc-dynamo doctor topology.nodes=8 cluster.slurm.partition=gpu …   a job of its own
  with the words of the `serve` or `batch` that is to come it also checks model, engine and GPUs
  it needs no model and takes a minute; exit code 1 where there is a fault
  hpc-dynamo doctor --json found.json engine=simulator topology.nodes=2""",
    "batch": """\
  hpc-dynamo batch engine=simulator input=prompts.jsonl
  hpc-dynamo batch input=prompts.jsonl model.path=/shared/llama cluster.gpus_per_node=4 \\
      topology.prefill.workers=2 topology.decode.workers=2 cluster.slurm.time=08:00:00
  the same command again goes on where the last attempt ended, however it ended""",
    "serve": """\
  hpc-dynamo serve engine=simulator
  hpc-dynamo serve model.path=/shared/llama cluster.gpus_per_node=4 name=afternoon \\
      topology.prefill.workers=2 topology.decode.workers=2 cluster.slurm.time=04:00:00
  hpc-dynamo serve models.small.path=/shared/llama-8b models.small.topology=aggregated \\
      models.large.path=/shared/llama-70b models.large.topology.prefill.workers=2 …
  it prints base URL, key and the ssh line for your laptop; Ctrl-C ends the job
  hpc-dynamo serve planner.job_handover=true …   goes on after its walltime: the next job takes over
  hpc-dynamo serve --detach …       submit and return; `hpc-dynamo status` tells the rest""",
    "profile": """\
  hpc-dynamo profile engine=simulator topology=aggregated
  hpc-dynamo profile model.path=/shared/llama cluster.gpus_per_node=4 name=llama-tp4 \\
      topology.prefill.tensor_parallel=4 topology.decode.tensor_parallel=4
  it measures TTFT, ITL, throughput, start and KV transfer of one worker of each role, writes
  profile.json and profile.png into the run folder, and says how far it is off between its points:
  planner.profile=runs/llama-tp4/profile.json planner.mode=sla plans by it
  the same command again goes on where the last attempt ended, however it ended""",
    "route": """\
  hpc-dynamo route --workers http://gpu1:8000,http://gpu2:8000
  hpc-dynamo route --workers http://gpu1:8000,http://gpu2:8000 route.api_key_file=engines.key \\
      serve.host=0.0.0.0 serve.port=8080 model.path=/shared/llama model.name=llama
  hpc-dynamo route --prefill http://gpu1:8000 --decode http://gpu2:8000,http://gpu3:8000
  hpc-dynamo route --workers http://gpu1:8000 --events 'tcp://gpu1:5557|tcp://gpu1:5558'
  it takes what is up now and waits for the rest; Ctrl-C ends the endpoint, the engines go on
  model.path: whose tokenizer tells what is cached where; without, requests go by load alone
  engine.name: whose words prefill and decode engines take (vllm)""",
    "chat": """\
  hpc-dynamo chat                   a conversation with the newest serving run below runs/
  hpc-dynamo chat name=afternoon "Why is the sky blue?"
  echo "Why is the sky blue?" | hpc-dynamo chat runs/afternoon --max-tokens 100 > answer.txt
  hpc-dynamo chat --url http://localhost:8000/v1 --key-file key --system 'Be brief.'""",
    "endpoint": """\
  export OPENAI_BASE_URL=$(hpc-dynamo endpoint name=afternoon)
  while a job hands over to the next it is the one that serves; the file runs/NAME/url has the same
  the key is in runs/NAME/api_key""",
    "status": """\
  hpc-dynamo status                 the newest run below runs/, live on a terminal
  hpc-dynamo status name=prompts    or the folder: hpc-dynamo status runs/prompts
  hpc-dynamo status --once          print it and return""",
    "report": """\
  hpc-dynamo report                 the newest run with a planner; also while it runs
  hpc-dynamo report name=afternoon --out roles.svg
  the table has the intervals in which something was to change; the picture has all of them""",
    "logs": """\
  hpc-dynamo logs                   which logs the newest run has
  hpc-dynamo logs 3 -n 50           the last 50 lines of rank 3
  hpc-dynamo logs name=afternoon head -f
  hpc-dynamo logs -f                all of them, until the run ends""",
    "stop": """\
  hpc-dynamo stop                   the newest run that is active
  hpc-dynamo stop prompts           results so far stay, the same batch command resumes""",
}

RUN = "RUN (its folder or name) or name=NAME; the newest without"
WORDS = {
    "chat": ("RUN|MESSAGE", f"{RUN}; what else there is, is the message"),
    "endpoint": ("RUN", RUN),
    "status": ("RUN", RUN),
    "report": ("RUN", RUN),
    "logs": ("RUN|LOG", f"{RUN}; a rank's number, head, agent-N or frontend-N"),
    "stop": ("RUN", RUN),
}


def arguments(name: str, verb: ArgumentParser) -> None:
    """The options of a verb, and what its words are."""
    metavar, what = WORDS.get(name, ("OVERRIDE", "FIELD=VALUE, see below"))
    verb.add_argument("overrides", nargs="*", metavar=metavar, help=what)
    about = "more files for the groups of conf/"
    verb.add_argument("--config-dir", type=path, metavar="DIR", help=about)
    match name:
        case "plan":
            plan.options(verb)
        case "batch" | "serve" | "profile":
            verb.add_argument("--detach", action="store_true", help="submit and return at once")
            about = "start without a look at each node (cluster.preflight=false)"
            verb.add_argument("--no-preflight", action="store_true", help=about)
        case "doctor":
            doctor.options(verb)
        case "route":
            route.options(verb)
        case "simulate":
            simulate.options(verb)
        case "chat":
            _chat(verb)
        case "status":
            about = "print once and return, on a terminal too"
            verb.add_argument("--once", action="store_true", help=about)
        case "report":
            report.options(verb)
        case "logs":
            about = "go on until the run ends"
            verb.add_argument("-f", "--follow", action="store_true", help=about)
            about = "of each log's end (10)"
            verb.add_argument("-n", "--lines", type=int, default=10, metavar="N", help=about)


def _chat(verb: ArgumentParser) -> None:
    verb.add_argument("--url", metavar="URL", help="base URL of any OpenAI endpoint, not a run's")
    about = "holds its key; without: the run's, or $OPENAI_API_KEY for a --url"
    verb.add_argument("--key-file", type=expanduser, metavar="FILE", help=about)
    about = "its certificate (PEM), to be trusted under any name"
    verb.add_argument("--cert", type=expanduser, metavar="FILE", help=about)
    verb.add_argument("--model", metavar="NAME", help="where there is more than one")
    verb.add_argument("--system", metavar="TEXT", help="what the model is to be")
    verb.add_argument("--max-tokens", type=int, metavar="N", help="of one answer")
    verb.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest words")
