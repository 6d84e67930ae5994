"""Makes the golden data of this folder and the tiny fixture models, with Hugging Face transformers on the CPU.

    python3 -m venv /tmp/venv-golden
    /tmp/venv-golden/bin/pip install torch transformers safetensors
    /tmp/venv-golden/bin/python tests/golden/make_golden.py

It writes

- `demo-llama.json`, `demo-gpt2.json`, `demo-llama-tldr.json` (adapted: ids are those of its patch vocabulary): for each of 20 prompts its text and token ids, 64 greedy tokens (plain argmax, not
  stopped at the end-of-text token), and logits after the last prompt token: the 20 largest as [id, logit], and those of
  the 64 ids in `sample_ids`;
- `../models/tiny-*`: models with random weights, one for each shape of config.json and safetensors that is served;
- `tiny-*.json`: for each of 4 prompts its token ids, all 128 logits after the last, and 24 greedy tokens. Where
  `max_model_len` is given, contexts of that length are to be served: dynamic and long rotary frequencies depend on it.

`make_golden.py NAME...` makes only what is named.

All arithmetic is in single precision, from the weights as they are stored. `min_margin` is the smallest distance
between the two largest logits over all greedy steps of a prompt: another implementation must come closer than half of
it to be sure of the same tokens.
"""

import json
import os
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb
from transformers.models.qwen3 import modeling_qwen3

GOLDEN = pathlib.Path(__file__).resolve().parent
MODELS = GOLDEN.parent / "models"

VOCAB = 128
SIZES = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)

# Models for what else a configuration may say: of contexts beyond the 32 tokens of a first training.
SMALL = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)
LONG = (5, 33, 60, 100)

PROSE = (
    "A queue in front of a server is a promise. Every request that waits in it was told that its turn will come, and "
    "the longer the queue, the older the promise is when it is kept. Most systems are built by people who count the "
    "requests served in a second and forget to count the seconds a request has waited. "
)
HISTORY = (
    "The first railways ran on the clocks of the towns they joined. A traveller who left one station at noon arrived "
    "at the next before he had left, or long after the journey could have ended, for every town kept the time of its "
    "own sun. The companies printed tables of differences, guards carried two watches, and trains met on single lines "
    "because two men had read the same minute from different dials. When the telegraph was laid beside the track, one "
    "clock could at last tell all the others what it said, and within a few years the time of the railway was the "
    "time of the country. "
)
RUST = (
    "/// Returns the first element that satisfies the predicate.\n"
    "///\n"
    "/// # Examples\n"
    "///\n"
    "/// ```\n"
    "/// let found = [1, 4, 9].iter().find(|x| **x > 3);\n"
    "/// assert_eq!(found, Some(&4));\n"
    "/// ```\n"
    "pub fn find<T, P>(items: &[T], mut predicate: P) -> Option<&T>\n"
    "where\n"
    "    P: FnMut(&T) -> bool,\n"
    "{\n"
    "    for item in items {\n"
    "        if predicate(item) {\n"
    "            return Some(item);\n"
    "        }\n"
    "    }\n"
    "    None\n"
    "}\n"
)


def demo_prompts(tokenizer):
    """Pairs of a name and a text."""
    def chat(*turns):
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    return [
        ("tldr git rebase", "# git rebase\n\n>"),
        ("tldr after end of text", "<|endoftext|># tar\n\n> Archiving utility.\n"),
        ("tldr in the middle", "# curl\n\n> Transfers data from or to a server.\n\n- Download a file:\n\n`curl"),
        ("tldr unknown command", "# frobnicate\n\n>"),
        ("single token", "The"),
        ("end of text alone", "<|endoftext|>"),
        ("one sentence", "The court held that the agency"),
        ("biology", "Expression of the gene in liver cells was measured after"),
        ("kubernetes", "## Motivation\n\nToday a Pod that is evicted"),
        ("rust code", RUST),
        ("python code", "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n"),
        ("json", '{"name": "fused", "version": 1, "items": [1, 2, 3], "nested": {"'),
        ("other scripts", "Größe, naïve, 日本語, Ελληνικά, 🚀 and"),
        ("white space", "\n\n\n    \t  \n- "),
        ("chat, one turn", chat("git commit")),
        ("chat, three turns", chat("ls", "List directory contents.", "ls -l")),
        ("chat, long turn", chat(PROSE.strip())),
        ("long prose", PROSE * 4),
        ("long history", HISTORY * 2),
        ("long code", RUST * 2 + PROSE),
    ]


def rounded(x, digits):
    return float(f"{x:.{digits}g}")


@torch.inference_mode()
def greedy(model, ids, num_tokens):
    """The greedy continuation, the logits after the prompt, and the smallest margin. The whole sequence is computed
    anew in each step, so that no cache can be wrong."""
    sequence, first, margin = list(ids), None, float("inf")
    for _ in range(num_tokens):
        logits = model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
        first = logits if first is None else first
        best = torch.topk(logits, 2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        sequence.append(best.indices[0].item())
    return sequence[len(ids):], first, margin


def load(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def write(name, head, prompts, model_name=None):
    """One line a prompt, so that a change can be read."""
    head = {"model": model_name or name, "torch": torch.__version__, "transformers": transformers.__version__, **head}
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False, separators=(",", ":")) for prompt in prompts)
    text = json.dumps(head, separators=(",", ":"))[:-1] + ',"prompts":[\n' + lines + "\n]}\n"
    (GOLDEN / f"{name}.json").write_text(text)
    worst = min(prompt["min_margin"] for prompt in prompts)
    distinct = len({token for prompt in prompts for token in prompt["greedy"]})
    print(f"{name}: {len(text)} bytes, {len(prompts)} prompts, {distinct} distinct tokens, min margin {worst}")


def segmented(patch, ids):
    """The fewest tokens of a patch vocabulary for base ids, by plain dynamic programming; of equally few the smallest sum
    of ranks, where a base token ranks behind all n-tokens."""
    parts = {removed["id"]: removed["parts"] for removed in patch["removed"]}
    ids = [part for i in ids for part in parts.get(i, [i])]
    model_id = {base + k: model + k for base, model, count in patch["kept"] for k in range(count)}
    n_tokens = {tuple(n["base"]): (rank, n["id"]) for rank, n in enumerate(patch["n_tokens"])}
    longest = max(map(len, n_tokens))
    best = [(0, 0, None)] + [None] * len(ids)
    for start in range(len(ids)):
        for end in range(start + 1, min(start + longest, len(ids)) + 1):
            piece = tuple(ids[start:end])
            rank, token = n_tokens.get(piece, (None, None))
            if len(piece) == 1:
                rank, token = len(n_tokens), model_id[piece[0]]
            if token is None:
                continue
            cost = (best[start][0] + 1, best[start][1] + rank, (start, token))
            if best[end] is None or cost[:2] < best[end][:2]:
                best[end] = cost
    tokens, end = [], len(ids)
    while end > 0:
        end, token = best[end][2]
        tokens.append(token)
    return tokens[::-1]


def make_demo(name):
    directory = MODELS / name
    patch_file = directory / "patch_vocabulary.json"
    patch = json.loads(patch_file.read_text()) if patch_file.exists() else None
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = load(directory)
    generator = torch.Generator().manual_seed(20)
    sample_ids = sorted(torch.randperm(model.config.vocab_size, generator=generator)[:64].tolist())
    prompts = []
    for title, text in demo_prompts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = segmented(patch, ids) if patch else ids
        tokens, logits, margin = greedy(model, ids, 64)
        top = torch.topk(logits, 20)
        prompts.append({
            "name": title, "text": text, "ids": ids, "greedy": tokens,
            "top": [[i, rounded(v, 6)] for i, v in zip(top.indices.tolist(), top.values.tolist())],
            "sample": [rounded(v, 6) for v in logits[sample_ids].tolist()],
            "min_margin": rounded(margin, 3),
        })
    write(name, {"sample_ids": sample_ids}, prompts)


def random_weights(model, seed):
    """Weights that leave nothing flat: norms away from one, biases away from zero, projections that keep the size of
    what passes them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            value = 0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise
        elif "embed_tokens" in name:
            value = 0.5 * noise
        elif "wte" in name or "wpe" in name:
            # Small, or GPT-2's tied output matrix makes every token follow itself.
            value = 0.15 * noise
        else:
            # A linear layer is stored [out, in], GPT-2's the other way round.
            fan_in = parameter.shape[0] if isinstance(model.config, GPT2Config) else parameter.shape[1]
            value = 1.4 * noise / fan_in**0.5
        parameter.data.copy_(value)


def old_spelling(config):
    """config.json as transformers before version 5 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.38.0"


def make_tiny(name, config, dtype, seed, old=False, num_shards=1, rename=lambda name: name, extra=None, drop=(),
              lengths=(5, 12, 23, 40)):
    if wanted(name):
        make_tiny_model(name, config, dtype, seed, old, num_shards, rename, extra, drop)
        if lengths:
            make_tiny_golden(name, name, seed, lengths)


def wanted(name):
    return len(sys.argv) == 1 or name in sys.argv[1:]


def make_tiny_model(name, config, dtype, seed, old, num_shards, rename, extra, drop):
    directory = MODELS / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = AutoModelForCausalLM.from_config(config)
    random_weights(model, seed)
    tensors = {rename(name): tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and not drop:
        tensors.pop("lm_head.weight")
    tensors.update(extra or {})
    for tensor in drop:
        tensors.pop(tensor)

    def save(part, file):
        save_file(part, directory / file, metadata={"format": "pt"})
        os.chmod(directory / file, 0o644)  # safetensors makes it readable for its owner only

    if num_shards == 1:
        save(tensors, "model.safetensors")
    else:
        names = sorted(tensors)
        weight_map = {}
        for shard in range(num_shards):
            file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
            part = names[shard::num_shards]
            weight_map.update(dict.fromkeys(part, file))
            save({name: tensors[name] for name in part}, file)
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    written = config.to_diff_dict()
    written["architectures"] = [type(model).__name__]
    written["dtype"] = str(dtype).removeprefix("torch.")
    if old:
        old_spelling(written)
    (directory / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")

    generation = {"bos_token_id": 1, "eos_token_id": [2, 5]}
    (directory / "generation_config.json").write_text(json.dumps(generation) + "\n")


def make_tiny_golden(name, model_name, seed, lengths, max_model_len=None):
    """From the files, so that the golden data prove them readable too."""
    model = load(MODELS / model_name)
    generator = torch.Generator().manual_seed(seed + 1)
    prompts = []
    for length in lengths:
        if max_model_len is not None:
            # What transformers computes once for so long a context it keeps for shorter ones.
            model(torch.ones(1, max_model_len, dtype=torch.long))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        tokens, logits, margin = greedy(model, ids, 24)
        prompts.append({"ids": ids, "greedy": tokens, "logits": [rounded(v, 7) for v in logits.tolist()],
                        "min_margin": rounded(margin, 3)})
    write(name, {"seed": seed, "max_model_len": max_model_len} if max_model_len else {"seed": seed}, prompts, model_name)


def make_all_tiny():
    make_tiny("tiny-llama3", LlamaConfig(**SIZES, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}), torch.bfloat16, seed=100)
    make_tiny("tiny-llama-bias", LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rms_norm_eps=0.05,
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}),
        torch.float32, seed=204, old=True)
    make_tiny("tiny-llama-sharded", LlamaConfig(**{**SIZES, "num_key_value_heads": None}, hidden_act="gelu"),
        torch.float16, seed=306, num_shards=2)
    make_tiny("tiny-mistral", MistralConfig(**SIZES, head_dim=16, sliding_window=8), torch.bfloat16, seed=400, old=True)
    make_tiny("tiny-qwen2", Qwen2Config(**{**SIZES, "num_hidden_layers": 3}, tie_word_embeddings=True,
        use_sliding_window=True, sliding_window=6, max_window_layers=1), torch.bfloat16, seed=502, old=True)
    make_tiny("tiny-qwen3", Qwen3Config(**SIZES, head_dim=24, tie_word_embeddings=True, use_sliding_window=True,
        sliding_window=6, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), torch.bfloat16, seed=600)
    # As OpenAI's own checkpoints are: no outer name, and the causal mask stored as if it were a weight.
    mask = torch.tril(torch.ones(1, 1, 128, 128, dtype=torch.bool))
    make_tiny("tiny-gpt2", GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_inner=80, n_positions=128,
        bos_token_id=1, eos_token_id=2, scale_attn_by_inverse_layer_idx=True), torch.bfloat16, seed=708,
        rename=lambda name: name.removeprefix("transformer."), extra={"h.0.attn.bias": mask})


def make_all_rotary():
    def rope(rope_type, **parameters):
        return {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}

    make_tiny("tiny-linear", LlamaConfig(**SMALL, rope_parameters=rope("linear", factor=4.0)), torch.bfloat16, seed=801,
        old=True, lengths=LONG)
    make_tiny("tiny-yarn", Qwen2Config(**SMALL, rope_parameters=rope("yarn", factor=4.0,
        original_max_position_embeddings=32)), torch.bfloat16, seed=811, old=True, lengths=LONG)
    make_tiny("tiny-yarn-mscale", LlamaConfig(**SMALL, rope_parameters=rope("yarn", factor=4.0, mscale=2.0,
        mscale_all_dim=0.5, beta_fast=4.0, beta_slow=0.5, truncate=False)), torch.bfloat16, seed=821, lengths=LONG)
    # transformers turns a part of a head in classes of other families; this one is given their function.
    modeling_qwen3.apply_rotary_pos_emb = apply_rotary_pos_emb
    make_tiny("tiny-partial", Qwen3Config(**SMALL, attention_bias=True, rope_parameters=rope("yarn", factor=4.0,
        partial_rotary_factor=0.5)), torch.bfloat16, seed=831, lengths=LONG)
    # Where frequencies depend on the length, one golden file for either side of the first training's; transformers
    # goes back to the short side's for a context that is shorter.
    make_tiny("tiny-dynamic", LlamaConfig(**SMALL, rope_parameters=rope("dynamic", factor=4.0)), torch.bfloat16,
        seed=841, old=True, lengths=())
    factors = {"short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0],
               "long_factor": [1.0, 1.2, 1.6, 2.0, 2.6, 3.2, 3.6, 4.0]}
    make_tiny("tiny-longrope", MistralConfig(**{**SMALL, "max_position_embeddings": 128}, sliding_window=None,
        rope_parameters=rope("longrope", original_max_position_embeddings=32, **factors)), torch.bfloat16, seed=851,
        lengths=())
    for name, seed in ("tiny-dynamic", 841), ("tiny-longrope", 851):
        if wanted(name):
            make_tiny_golden(name, name, seed, (33, 48, 70, 100), max_model_len=128)
            make_tiny_golden(f"{name}-short", name, seed, (1, 3, 5, 7), max_model_len=31)


def make_all_tied():
    tied = LlamaConfig(**{**SMALL, "max_position_embeddings": 128}, tie_word_embeddings=True)
    # Of tied weights the file keeps the head's name.
    make_tiny("tiny-one-head", tied, torch.bfloat16, seed=861, drop=["model.embed_tokens.weight"])
    # Tied by config.json, and with a head of its own all the same, which counts.
    head = torch.randn(VOCAB, 32, generator=torch.Generator().manual_seed(870)).to(torch.bfloat16) / 4
    make_tiny("tiny-other-head", tied, torch.bfloat16, seed=871, extra={"lm_head.weight": head})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make_all_tiny()
    make_all_rotary()
    make_all_tied()
    for demo in "demo-llama", "demo-gpt2", "demo-llama-tldr":
        if wanted(demo):
            make_demo(demo)
