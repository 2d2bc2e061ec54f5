"""Run folder: all paths of a run, and how its files are written.

    runs/<name>/                 mode 0700
      run.json                   input that these results belong to
      settings.json              settings that the results depend on
      retry.json                 failures that batch.retry_failed=true has discarded
      secrets.json               mode 0600: token of the engines, keys of the control plane
      api_key                    mode 0600: API key of the endpoint's clients
      url                        base URL of the attempt that serves now
      attempts/<n>/              n-th attempt: one launch of the run
        config.json plan.json job.json roster.json status.json outcome.json endpoint.json
        planner.jsonl            inputs, decisions and actions of the planner
        nodes/<i>.json           written by agent i when it started
        logs/agent-<i>.log logs/worker-<rank>.log logs/frontend-<i>.log
        logs/worker-<rank>-shard-<k>.log  shard k of a multi-node worker
        logs/worker-<rank>.yaml  options of an engine that reads them from a file
        submitit/                scripts, pickles and logs of submitit
        scale_out.jsonl          extra jobs that were requested or given back, and why
        extra_jobs/<k>/          an extra job: plan.json job.json state.json outcome.json nodes/
                                 submitit/; its logs are in the attempt's logs/
      parts/<n>.jsonl            results of attempt n, appended; <n>.<k>.jsonl after Slurm has
                                 restarted its job k times
      output.jsonl errors.jsonl  all results in the order of the input, once a run has ended
      profile.json profile.png   measurements of all attempts of a profile

The folder is on a shared and slow disk. So there are no locks, and small files are written under a
temporary name, flushed and renamed. An attempt is claimed by creating its folder, and each attempt
appends only to its own files.
"""

from hpc_dynamo.run.files import read_json, write_atomic, write_json
from hpc_dynamo.run.folders import Attempt, ExtraJobFolder, Run, RunIdentity
from hpc_dynamo.run.result_parts import attempt_of_part
from hpc_dynamo.run.secrets import Secrets, new_token

__all__ = [
    "Attempt",
    "ExtraJobFolder",
    "Run",
    "RunIdentity",
    "Secrets",
    "attempt_of_part",
    "new_token",
    "read_json",
    "write_atomic",
    "write_json",
]
