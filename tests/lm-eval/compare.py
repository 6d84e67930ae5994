"""Compares what lm-evaluation-harness measures over /v1/completions with its own transformers backend, sample by sample.

    compare.py --model DIR --base-url http://127.0.0.1:PORT [--adapted]

Scores of choices (log-likelihoods) must agree within MAX_ERROR nats, those of texts included after which the model's end
is likeliest, and so must the texts that are written. The ids come from the harness's remote tokenizer, which asks the
server, and from the model's own tokenizer.json; both must give the same.

An adapted model (--adapted) has other ids than its tokenizer.json says, so that only the remote tokenizer is right. There
what is compared with is transformers, run on the ids that the server gives.
"""

import argparse
import json
import logging
import os
import sys
import urllib.request
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lm_eval
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
CHOICES, WRITING = "fused_choices", "fused_writing"
MAX_ERROR = 1e-3


def evaluate(backend, model_args, tasks):
    """The answers to every sample, by task: log-likelihoods and whether each is greedy, or texts."""
    # The data files are named relative to here.
    os.chdir(HERE)
    manager = TaskManager(include_path=str(HERE), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=backend, model_args=model_args, tasks=tasks, task_manager=manager, batch_size=1, bootstrap_iters=0,
        log_samples=True,
    )
    return {task: [s["filtered_resps"] for s in sorted(results["samples"][task], key=lambda s: s["doc_id"])] for task in tasks}


def differences(name, ours, theirs):
    """How far scores are apart at most; fails where texts or greediness are not the same."""
    worst = 0.0
    for idx, (our, their) in enumerate(zip(ours[CHOICES], theirs[CHOICES], strict=True)):
        for (our_score, our_greedy), (their_score, their_greedy) in zip(our, their, strict=True):
            worst = max(worst, abs(float(our_score) - float(their_score)))
            if str(our_greedy) != str(their_greedy):
                sys.exit(f"{name}: greedy or not, sample {idx}: {our} and {their}")
    if worst > MAX_ERROR:
        sys.exit(f"{name}: scores are {worst:.6f} nats apart, over {MAX_ERROR}")
    if WRITING in theirs and ours[WRITING] != theirs[WRITING]:
        different = [pair for pair in zip(ours[WRITING], theirs[WRITING]) if pair[0] != pair[1]]
        sys.exit(f"{name}: texts differ: {different[:3]}")
    return worst


def post(base_url, path, body):
    request = urllib.request.Request(base_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def documents():
    return [json.loads(line) for line in (HERE / "choices.jsonl").read_text().splitlines()]


def num_ending(base_url):
    """After how many of the choices the model's likeliest next token is its end."""
    prompts = [doc["context"] + choice for doc in documents() for choice in doc["choices"]]
    answer = post(base_url, "/v1/completions", {"prompt": prompts, "max_tokens": 1, "temperature": 0})
    return sum(choice["finish_reason"] == "stop" for choice in answer["choices"])


def transformers_on_the_servers_ids(model_dir, base_url):
    """Scores of the choices, as the harness makes them of a remote tokenizer's ids."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def ids(text):
        return post(base_url, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    scores = []
    for doc in documents():
        scores.append([])
        for choice in doc["choices"]:
            # White space at the context's end belongs to the choice, as the harness has it.
            context = doc["context"].rstrip()
            before, whole = ids(context), ids(doc["context"] + choice)
            # As many of the whole's tokens are the context's as the context has by itself.
            start, whole = len(before), before + whole[len(before) :]
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            positions = range(start, len(whole))
            score = sum(logprobs[at - 1, whole[at]].item() for at in positions)
            greedy = all(logprobs[at - 1].argmax().item() == whole[at] for at in positions)
            scores[-1].append((score, greedy))
    return {CHOICES: scores}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--adapted", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    model_dir = str(Path(options.model).resolve())
    served = json.load(urllib.request.urlopen(options.base_url + "/v1/models"))["data"][0]["id"]
    api = {"model": served, "base_url": options.base_url + "/v1/completions", "max_retries": 1, "max_length": 256}
    remote = {**api, "tokenizer_backend": "remote"}
    tasks = [CHOICES, WRITING]
    name = Path(model_dir).name
    num_ends = num_ending(options.base_url)

    over_remote = evaluate("local-completions", remote, tasks)
    if options.adapted:
        theirs = transformers_on_the_servers_ids(model_dir, options.base_url)
        worst = differences(name, over_remote, theirs)
        print(f"{name}: scores within {worst:.6f} nats of transformers on the same ids; {num_ends} choices end the text")
        return
    # Without a token before a text, as the remote tokenizer has it.
    options_of_hf = {"device": "cpu", "dtype": "float32", "max_length": 256, "add_bos_token": False}
    theirs = evaluate("hf", {**options_of_hf, "pretrained": model_dir}, tasks)
    own = {**api, "tokenizer_backend": "huggingface", "tokenizer": model_dir}
    worst = max(
        differences(f"{name}, remote tokenizer", over_remote, theirs),
        differences(f"{name}, its own tokenizer", evaluate("local-completions", own, tasks), theirs),
    )
    num_texts = len(theirs[WRITING])
    print(f"{name}: scores within {worst:.6f} nats, {num_texts} texts the same; {num_ends} choices end the text")


if __name__ == "__main__":
    main()
