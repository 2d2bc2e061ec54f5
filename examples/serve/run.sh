#!/usr/bin/env bash
# Start an endpoint with the simulator, send a chat to it, and stop it.
# Arguments are overrides: ./run.sh topology.decode.workers=2
set -euo pipefail
folder=$(dirname "$0")

# --detach returns as soon as the job is submitted.
hpc-dynamo serve engine=simulator name=example-endpoint --detach "$@"
trap 'hpc-dynamo stop name=example-endpoint' EXIT

# `endpoint` fails until the run has published its URL, and /ready until it accepts requests.
until url=$(hpc-dynamo endpoint name=example-endpoint 2> /dev/null); do sleep 1; done
until curl --silent --fail "${url%/v1}/ready" > /dev/null; do sleep 1; done

export OPENAI_BASE_URL=$url
OPENAI_API_KEY=$(cat runs/example-endpoint/api_key)
export OPENAI_API_KEY
python3 "$folder/client.py"
