#!/usr/bin/env bash
# Install a wheel into an empty environment and run a batch with the simulator:
# tools/smoke_wheel.sh dist/hpc_dynamo-0.1.0-py3-none-any.whl
set -euo pipefail
wheel=$(realpath "$1")
locks=$(realpath "$(dirname "$0")/../requirements")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --require-hashes -r "$locks/run.lock"
"$folder/env/bin/pip" install --quiet --require-hashes --no-deps -r "$locks/nixl.lock"
"$folder/env/bin/pip" install --quiet --no-deps "$wheel"

cd "$folder"
test -n "$(find env -path '*hpc_dynamo-*.dist-info/licenses/LICENSE')"
hpc_dynamo="$folder/env/bin/hpc-dynamo"
"$hpc_dynamo" --version
"$hpc_dynamo" plan recipe=llama-8b-vllm cluster.gpus_per_node=8
echo '{"prompt": "The capital of France is", "max_tokens": 4}' > prompts.jsonl
"$hpc_dynamo" batch engine=simulator input=prompts.jsonl
test "$(wc -l < runs/prompts/output.jsonl)" = 1
echo "the wheel works"
