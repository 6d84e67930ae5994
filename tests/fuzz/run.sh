#!/usr/bin/env bash
# Fuzzes every target for SECONDS (2 by default) from the repository's own files as seeds: with libFuzzer where
# `cargo install cargo-fuzz` and a nightly compiler are there, else, or with `--smoke`, by random changes of the seeds.
# The same versions of everything are built as in the workspace, into its target folder.
set -euo pipefail
cd "$(dirname "$0")"
smoke=
if [ "${1:-}" = --smoke ]; then smoke=1 && shift; fi
seconds=${1:-2}
targets=(pickle embedding patch_vocabulary config safetensors tokenizer chat_template http)

rm -rf artifacts
for target in "${targets[@]}"; do mkdir -p "corpus/$target"; done
toy=../golden/adaptivocab-toy
cp "$toy"/*.pkl corpus/pickle/
cp "$toy"/embedding_*.pkl corpus/embedding/
cp ../models/demo-llama-tldr/patch_vocabulary.json corpus/patch_vocabulary/
for model in ../models/*/; do
    name=$(basename "$model")
    cp "$model/config.json" "corpus/config/$name.json"
    case $name in tiny-*) for file in "$model"*.safetensors; do cp "$file" "corpus/safetensors/$name-$(basename "$file")"; done ;; esac
done
cp "$toy/tokenizer.json" corpus/tokenizer/toy.json
cat > corpus/chat_template/plain <<'JINJA'
{% for m in messages %}{% if m['role'] == 'user' %}[{{ m.content | trim }}]{% else %}{{ m.content.strip() ~ eos_token }}{% endif %}{% endfor %}
JINJA
cat > corpus/chat_template/tools <<'JINJA'
{%- set ns = namespace(last=0, seen=[]) %}{%- for m in messages[::-1] %}{%- set ns.last = loop.index0 %}{%- set ns.seen = ns.seen + [m.role] %}{%- endfor %}
{%- macro show(x) -%}{{ x | tojson(indent=2) }}{%- endmacro %}{{ show(messages) }}{{ '%s %d' | format('a', ns.last) }}{{ ns.seen | join(', ') | replace('user', 'u') }}{{ 'x' * 3 }}{{ strftime_now('%d %b %Y') }}{{ raise_exception('no') if tools is not none else '' }}
JINJA
printf '0%s' '{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_tokens": 5, "temperature": 0.5, "stop": ["a"], "logit_bias": {"5": -1}, "stream": true, "n": 2, "tools": []}' > corpus/http/chat
printf '1%s' '{"prompt": ["a", "b"], "max_tokens": 5, "logprobs": 3, "echo": true, "seed": 7, "stop": "x", "stream_options": {"include_usage": true}}' > corpus/http/completion
printf '2%s' '{"prompt": "text", "add_special_tokens": true, "return_token_strs": true}' > corpus/http/tokenize
printf '3%s' '{"tokens": [1, 2, 3]}' > corpus/http/detokenize

cp ../../Cargo.lock Cargo.lock
if [ -z "$smoke" ] && cargo +nightly fuzz --version > /dev/null 2>&1; then
    for target in "${targets[@]}"; do
        cargo +nightly fuzz run "$target" --fuzz-dir . --features libfuzzer -- \
            -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048
    done
else
    cargo run --target-dir ../../target --bin smoke -- "$seconds"
fi
