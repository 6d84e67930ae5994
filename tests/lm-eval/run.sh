#!/usr/bin/env bash
# Runs lm-evaluation-harness against servers that this script starts and stops, and compares with its transformers backend.
# Usage: run.sh PATH_TO_FUSED [MODEL_DIR...]; without models: the demo models of the repository.
# Installs torch, some gigabytes, into a cached virtual environment (or takes the one that LM_EVAL_VENV names), and is
# therefore no part of CI.
set -euo pipefail
fused=$(realpath "${1:?usage: run.sh PATH_TO_FUSED [MODEL_DIR...]}")
shift
here=$(cd "$(dirname "$0")" && pwd)
models=("$@")
if [ ${#models[@]} -eq 0 ]; then
  models=("$here"/../models/demo-llama "$here"/../models/demo-gpt2 "$here"/../models/demo-llama-tldr)
fi

digest=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])' \
  < "$here/requirements.txt")
venv="${LM_EVAL_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/fused/lm-eval-$digest}"
if [ -z "${LM_EVAL_VENV:-}" ] && [ ! -e "$venv/installed" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  touch "$venv/installed"
fi

server=
output=$(mktemp)
end() {
  status=$?
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" || status=1; fi
  if [ "$status" -ne 0 ]; then sed 's/^/server: /' "$output" >&2; fi
  rm -f "$output"
  exit "$status"
}
trap end EXIT

for model in "${models[@]}"; do
  "$fused" serve --model "$model" --port 0 > "$output" 2>&1 &
  server=$!
  url=
  for _ in $(seq 600); do
    url=$(sed -n 's/^listening on \(http:[^ ]*\).*/\1/p' "$output" | head -n 1)
    [ -n "$url" ] && break
    kill -0 "$server" 2>/dev/null || { echo "the server ended before it listened" >&2; exit 1; }
    sleep 0.1
  done
  [ -n "$url" ] || { echo "the server did not say where it listens" >&2; exit 1; }
  adapted=()
  if [ -e "$model/patch_vocabulary.json" ]; then adapted=(--adapted); fi
  "$venv/bin/python" "$here/compare.py" --model "$model" --base-url "$url" "${adapted[@]}"
  kill "$server"
  wait "$server" || { echo "the server did not end well" >&2; exit 1; }
  server=
done
