#!/usr/bin/env bash
# Fuzzes each target for SECONDS (60 by default), with the repository's own files as seeds. Needs a nightly compiler and
# `cargo install cargo-fuzz`.
set -euo pipefail
cd "$(dirname "$0")"
toy=../golden/adaptivocab-toy
mkdir -p corpus/{pickle,embedding,patch_vocabulary}
cp "$toy"/*.pkl corpus/pickle/
cp "$toy"/embedding_*.pkl corpus/embedding/
cp ../models/demo-llama/patch_vocabulary.json corpus/patch_vocabulary/
for target in pickle embedding patch_vocabulary; do
    cargo +nightly fuzz run "$target" --fuzz-dir . -- -max_total_time="${1:-60}" -max_len=65536 -rss_limit_mb=2048
done
