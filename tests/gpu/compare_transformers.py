#!/usr/bin/env python3
"""Compares `fused serve` with transformers on the same device: log-probabilities and greedy choices.

Makes small models of random weights with transformers itself, computes with it in f32 and in bf16, serves the very same
files with `fused`, and asks for the same over /v1/completions. What is right is f32; how far bf16 may be off is what
transformers' own bf16 is off by, on the same device and the same text:

- log-probabilities of random text and of greedy continuations, of the token that stands there and of the likeliest one:
  root mean square and largest error at most BOUND times those of transformers in bf16;
- greedy choices, each behind the same text: at most BOUND times as many that are not f32's (and 4 more, since few of few
  is chance).

On the CPU `fused` computes in f32, so that the bound is a fixed one, F32_ERROR: the same sums in another order.

Needs torch and transformers 5, no network. It is no part of CI.

    compare_transformers.py --fused target/release/fused [--device cuda:0] [--model NAME]...
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

BOUND = 1.5
F32_ERROR = 5e-4
TOKENIZER = Path(__file__).resolve().parents[1] / "models" / "demo-llama"
VOCAB_SIZE = 8192
# Random text, of odd lengths too; prompts of greedy continuations, as many of each length as there are sequences.
TEXT_LENGTHS = [512, 511, 384, 257, 128, 65, 17, 2]
PROMPT_LENGTHS = [5, 64, 333]
NUM_PROMPTS = 4
NUM_CONTINUED = 96
START_TIMEOUT_S = 120

# Widths at which a layer adds about as much as is there already, so that one choice of tokens follows from the text and
# the next is not the same again.
COMMON = dict(vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0, pad_token_id=0)
LLAMA = dict(COMMON, max_position_embeddings=1024, initializer_range=0.05)
MODELS = {
    "llama-64-tied": lambda: LlamaForCausalLM(
        LlamaConfig(
            **LLAMA,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
        )
    ),
    "llama-128-untied": lambda: LlamaForCausalLM(
        LlamaConfig(
            **LLAMA,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=128,
            tie_word_embeddings=False,
        )
    ),
    # Frequencies that are scaled, and sines and cosines too.
    "llama-yarn": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{**LLAMA, "max_position_embeddings": 256},
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **LLAMA,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=128,
            tie_word_embeddings=True,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**COMMON, n_positions=1024, n_embd=768, n_layer=6, n_head=12, initializer_range=0.05)
    ),
}


@dataclass
class Scores:
    """Of a text, at every position but the first: what stands there, and whether it is the likeliest."""

    logprobs: torch.Tensor
    likeliest_logprobs: torch.Tensor
    is_likeliest: torch.Tensor

    def behind(self, position):
        return self.is_likeliest[position - 1 :]


def main():
    arguments = parse()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {device_name(arguments.device)}")
    print(
        f"{'':18} {'choices that are not those of f32':^35} {'rms error of log-probabilities':^33} {'largest':^25}\n"
        f"{'model':18} {'of':>7} {'bf16':>8} {'fused':>8} {'bound':>8}   "
        f"{'bf16':>10} {'fused':>10} {'bound':>10}  {'bf16':>8} {'fused':>8} {'bound':>8}",
        flush=True,
    )
    failed = []
    for name in arguments.model or MODELS:
        with tempfile.TemporaryDirectory(prefix="fused-compare-") as folder:
            make(name, Path(folder), arguments.seed)
            if not compare(name, Path(folder), arguments):
                failed.append(name)
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fused", type=Path, required=True, help="the binary")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="cpu or cuda:N")
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated [default: all]")
    parser.add_argument("--seed", type=int, default=1, help="of weights and texts")
    return parser.parse_args()


def device_name(device):
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def make(name, folder, seed):
    """A model directory with random bf16 weights. Norms and biases, which transformers makes ones and zeros, too."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        copy(TOKENIZER / file, folder / file)


def compare(name, folder, arguments):
    exact = load(folder, torch.float32, arguments.device)
    generator = torch.Generator().manual_seed(arguments.seed)

    def random_ids(*shape):
        return torch.randint(VOCAB_SIZE, shape, generator=generator)

    texts = [random_ids(length).tolist() for length in TEXT_LENGTHS]
    prompts = [random_ids(NUM_PROMPTS, length) for length in PROMPT_LENGTHS]
    continued = [ids for batch in prompts for ids in continue_greedily(exact, batch.to(arguments.device))]
    lengths = [length for length in PROMPT_LENGTHS for _ in range(NUM_PROMPTS)]
    right = [score(exact, ids) for ids in texts + continued]
    rough = load(folder, torch.bfloat16, arguments.device)
    bf16 = [score(rough, ids) for ids in texts + continued]
    del rough
    with Server(arguments.fused, folder, arguments.device) as server:
        with ThreadPoolExecutor(max_workers=len(right)) as pool:
            fused = list(pool.map(server.score, texts + continued))
            # Its own continuations are decoded token by token, where the texts above were prefilled: all at once, and some
            # alone, since few rows take kernels of their own.
            begun = [ids[:n] for ids, n in zip(continued, lengths)]
            own = list(pool.map(server.continue_greedily, begun))
            alone = [server.continue_greedily(ids) for ids in begun[::4]]
    # Behind what fused has written itself, what would f32 have chosen?
    written = [a + b for a, b in zip(begun + begun[::4], own + alone, strict=True)]
    chosen = [score(exact, ids).behind(n) for ids, n in zip(written, lengths + lengths[::4], strict=True)]
    return report(name, arguments, right, bf16, fused, torch.cat(chosen), decoded(continued, lengths, own), lengths)


def load(folder, dtype, device):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device).eval()


def continue_greedily(model, ids):
    # No token ends a text here.
    model.generation_config.eos_token_id = None
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_CONTINUED, pad_token_id=0
    )
    assert whole.shape[1] == ids.shape[1] + NUM_CONTINUED
    return whole.tolist()


@torch.no_grad()
def score(model, ids):
    ids = torch.tensor([ids], device=model.device)
    logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    likeliest = logprobs.max(-1)
    stands = ids[0, 1:]
    at = logprobs.gather(-1, stands[:, None])[:, 0]
    return Scores(at.cpu(), likeliest.values.cpu(), (likeliest.indices == stands).cpu())


def decoded(continued, lengths, own):
    """Over all prompts: greedy tokens until the first that is another than f32's, and how many there were."""
    same = 0
    for ids, length, tokens in zip(continued, lengths, own):
        pairs = list(zip(ids[length:], tokens, strict=True))
        same += next((idx for idx, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return same, NUM_CONTINUED * len(own)


def report(name, arguments, right, bf16, fused, chosen, decoded, lengths):
    def errors(scores):
        pairs = list(zip(scores, right, strict=True))
        all_errors = [a.logprobs - b.logprobs for a, b in pairs]
        all_errors += [a.likeliest_logprobs - b.likeliest_logprobs for a, b in pairs]
        all_errors = torch.cat(all_errors)
        return all_errors.square().mean().sqrt().item(), all_errors.abs().max().item()

    def num_other(scores):
        behind = [score.behind(n) for score, n in zip(scores[len(TEXT_LENGTHS) :], lengths, strict=True)]
        behind = torch.cat(behind)
        return (~behind).sum().item(), behind.numel()

    (rms_bf16, max_bf16), (rms, largest) = errors(bf16), errors(fused)
    (other_bf16, num), (other, _) = num_other(bf16), num_other(fused)
    # f32 chose these tokens itself, one by one; scored all at once it must find the same, but for ties.
    other_f32, _ = num_other(right)
    if arguments.device == "cpu":
        rms_bound, max_bound, other_bound = F32_ERROR, F32_ERROR, other_f32 + 4
    else:
        rms_bound, max_bound, other_bound = BOUND * rms_bf16, BOUND * max_bf16, int(BOUND * other_bf16) + 4
    # Of decoded tokens there are more.
    other_decoded, decoded_bound = (~chosen).sum().item(), int(other_bound * chosen.numel() / num)
    is_well = rms <= rms_bound and largest <= max_bound and other <= other_bound and other_decoded <= decoded_bound
    print(
        f"{name:18} {num:7} {other_bf16:8} {other:8} {other_bound:8}   "
        f"{rms_bf16:10.6f} {rms:10.6f} {rms_bound:10.6f}  {max_bf16:8.4f} {largest:8.4f} {max_bound:8.4f}"
        f"  {'ok' if is_well else 'FAILED'}\n"
        f"{'':18} decoded: {other_decoded} of {chosen.numel()} are not f32's behind the same text (bound {decoded_bound}); "
        f"{decoded[0]} of {decoded[1]} stand before the first that is not",
        flush=True,
    )
    return is_well


class Server:
    """`fused serve` with one model, from its first address on to its end."""

    def __init__(self, fused, folder, device):
        self.log = tempfile.TemporaryFile("w+")
        command = [fused, "serve", "--model", folder, "--device", device, "--port", "0", "--log-filter", "warn"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def __enter__(self):
        began = time.monotonic()
        # One line an address, then an empty one.
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.url = line.split()[2]
                return self
            if time.monotonic() - began > START_TIMEOUT_S:
                break
        self.__exit__()
        self.log.seek(0)
        sys.exit(f"fused did not start: {self.log.read()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def complete(self, **fields):
        body = json.dumps(fields).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["choices"][0]
        except urllib.error.HTTPError as error:
            sys.exit(f"fused answered {error.code}: {error.read().decode()}")

    def score(self, ids):
        logprobs = self.complete(prompt=ids, max_tokens=0, echo=True, logprobs=1)["logprobs"]
        at = torch.tensor(logprobs["token_logprobs"][1:])
        # Texts of tokens, since the API names no ids: two tokens may share one, but not their place in the order.
        likeliest = torch.tensor([max(top.values()) for top in logprobs["top_logprobs"][1:]])
        return Scores(at, likeliest, at == likeliest)

    def continue_greedily(self, ids):
        fields = dict(max_tokens=NUM_CONTINUED, temperature=0, ignore_eos=True, return_token_ids=True)
        return self.complete(prompt=ids, **fields)["token_ids"]


if __name__ == "__main__":
    main()
