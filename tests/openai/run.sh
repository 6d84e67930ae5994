#!/usr/bin/env bash
# Runs the official `openai` client against a server that this script starts and stops.
# Usage: run.sh PATH_TO_FUSED [SERVE_FLAG...]
# Skips, and says so, where Python or the package cannot be had.
set -euo pipefail
fused=$(realpath "${1:?usage: run.sh PATH_TO_FUSED [SERVE_FLAG...]}")
shift
here=$(cd "$(dirname "$0")" && pwd)

skip() { echo "SKIPPED: tests/openai: $1"; exit 0; }

command -v python3 >/dev/null || skip "python3 is not here"
digest=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])' \
  < "$here/requirements.txt")
venv="${XDG_CACHE_HOME:-$HOME/.cache}/fused/openai-client-$digest"
if [ ! -e "$venv/installed" ]; then
  python3 -m venv "$venv" || skip "python3 cannot make a virtual environment"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" \
    || skip "the openai package cannot be installed"
  touch "$venv/installed"
fi

output=$(mktemp)
FUSED_TEST_KEY="key-of-this-test"
"$fused" serve --port 0 --api-key "$FUSED_TEST_KEY" "$@" > "$output" 2>&1 &
server=$!
end() {
  status=$?
  kill "$server" 2>/dev/null || true
  wait "$server" || { echo "the server did not end well" >&2; status=1; }
  if [ "$status" -ne 0 ]; then sed 's/^/server: /' "$output" >&2; fi
  rm -f "$output"
  exit "$status"
}
trap end EXIT

url=
for _ in $(seq 600); do
  url=$(sed -n 's/^listening on \(http:[^ ]*\).*/\1/p' "$output" | head -n 1)
  [ -n "$url" ] && break
  kill -0 "$server" 2>/dev/null || { echo "the server ended before it listened" >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { echo "the server did not say where it listens" >&2; exit 1; }

"$venv/bin/python" "$here/test_openai_client.py" --base-url "$url" --api-key "$FUSED_TEST_KEY"
