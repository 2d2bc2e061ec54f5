#!/usr/bin/env bash
# Answer prompts.jsonl with the simulator. The third request fails on purpose.
# Run it again: nothing is repeated. Arguments are overrides: ./run.sh topology.decode.workers=2
set -euo pipefail
input=$(dirname "$0")/prompts.jsonl

code=0
hpc-dynamo batch engine=simulator input="$input" name=example "$@" || code=$?
# Exit code 4: the batch is finished, but some requests failed.
[ "$code" = 0 ] || [ "$code" = 4 ] || exit "$code"

echo "answers:"
cat runs/example/output.jsonl
echo "failed requests:"
cat runs/example/errors.jsonl
