#!/usr/bin/env python3
"""Times `fused vocab build` and AdaptiVocab's own code on the very same text.

The authors' code has no licence and so is no part of this repository: --reference names a checkout of
https://github.com/itay-nakash/AdaptiVocab (commit 95276dd; src/build_vocab/handle_ds_pt.py and src/utils/utils_funcs.py
of commit b3662ce), whose own functions are called. This Python needs what it was written for: transformers 4.52.4,
tokenizers 0.21.0, sortedcontainers, numpy. Modules that it only imports (datasets, torch, pandas) are replaced by empty
ones where they are not installed, and its absolute paths point into a temporary folder. Nothing else is changed.

Both sides read one plain text file, encode it, choose removed tokens and n-tokens, and write them. The reference's
later parts (embeddings, statistics over a validation set) are not run. It runs on one core, as it is written.

    vocab_build.py --reference ~/AdaptiVocab --tokenizer ~/tokenizers/gpt2 --corpus train.txt --mb 10 --add 10000
"""

import argparse
import json
import os
import pickle
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

SEPARATOR = "\n<|endoftext|>\n"
COMMAND = (
    "fused vocab build --tokenizer {tokenizer} --corpus {corpus} --add {add} --max-n {max_n}"
    " --selection {selection} --threads {threads} --out {out}"
)


def main():
    arguments = parse()
    if arguments.stages:
        return run_reference(arguments)
    with tempfile.TemporaryDirectory(prefix="fused-vocab-build-") as folder:
        folder = Path(folder)
        corpus = folder / "corpus.txt"
        num_documents = cut(arguments.corpus, corpus, int(arguments.mb * 1e6))
        print(
            f"{corpus.stat().st_size / 1e6:.2f} MB, {num_documents} documents, {arguments.tokenizer.name}, "
            f"{arguments.add} n-tokens, {arguments.threads} threads, {os.cpu_count()} cores",
            flush=True,
        )
        ours = {}
        for selection, max_n in [("reference", arguments.max_n), ("exact", 32)]:
            if selection in arguments.selections.split(","):
                ours[selection] = run_fused(arguments, corpus, folder / f"{selection}.json", selection, max_n)
        if arguments.reference:
            wall, cpu, ended = watch_reference(arguments, corpus, folder)
            bound = "" if ended else "more than "
            for selection, measured in ours.items():
                print(
                    f"ratio, --selection {selection}: {bound}{wall / measured[0]:.0f} times the wall time, "
                    f"{bound}{cpu / measured[1]:.0f} times the CPU time"
                )
            if ended and "reference" in ours:
                compare(folder / "reference.json", folder / "added.pkl", arguments.tokenizer)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of AdaptiVocab; without it only ours is timed")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", required=True, help="folder with tokenizer.json")
    parser.add_argument("--corpus", type=Path, metavar="FILE", required=True, help=f"documents divided by lines {SEPARATOR.strip()}")
    parser.add_argument("--mb", type=float, default=10, help="how much of it is used, in whole documents [default: 10]")
    parser.add_argument("--add", type=int, default=10_000, metavar="N", help="n-tokens [default: 10000]")
    parser.add_argument("--max-n", type=int, default=3, metavar="N", help="base tokens of an n-token, for the reference's selection [default: 3]")
    parser.add_argument("--selections", default="reference,exact", help="ours to time [default: reference,exact]")
    parser.add_argument("--threads", type=int, default=2, help="threads of ours [default: 2]")
    parser.add_argument("--limit", type=float, default=7200, metavar="SECONDS", help="end the reference after so long [default: 7200]")
    parser.add_argument("--command", default=COMMAND, help=f"how ours is run [default: {COMMAND}]")
    parser.add_argument("--stages", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    return parser.parse_args()


def cut(source, target, num_bytes):
    """Writes whole documents until there are so many bytes; their number."""
    documents, total = [], 0
    # newline="": neither side may see other line ends than the other.
    with open(source, encoding="utf-8", newline="") as file:
        for document in file.read().split(SEPARATOR):
            if total >= num_bytes:
                break
            documents.append(document)
            total += len(document.encode()) + len(SEPARATOR)
    with open(target, "w", encoding="utf-8", newline="") as file:
        file.write(SEPARATOR.join(documents) + SEPARATOR)
    return len(documents)


def run_fused(arguments, corpus, out, selection, max_n):
    values = {
        "tokenizer": arguments.tokenizer,
        "corpus": corpus,
        "add": arguments.add,
        "max_n": max_n,
        "selection": selection,
        "threads": arguments.threads,
        "out": out,
    }
    command = [part.format(**values) for part in shlex.split(arguments.command)]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(arguments.threads))
    started = time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - started
    if status != 0:
        sys.exit(f"{shlex.join(command)} failed:\n{output}")
    cpu = usage.ru_utime + usage.ru_stime
    report(f"fused, --selection {selection}", wall, cpu, usage.ru_maxrss)
    return wall, cpu


def report(what, wall, cpu, rss_kib):
    print(f"{what:44} wall {wall:9.2f} s   CPU {cpu:9.2f} s   peak RSS {rss_kib / 1024:7.0f} MiB", flush=True)


def watch_reference(arguments, corpus, folder):
    """Runs the reference in a process of its own; its wall and CPU seconds, and whether it ended by itself."""
    command = [sys.executable, __file__, "--stages", folder, "--reference", arguments.reference]
    command += ["--tokenizer", arguments.tokenizer, "--corpus", corpus]
    command += ["--add", str(arguments.add), "--max-n", str(arguments.max_n)]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    log = folder / "reference.log"
    with open(log, "w") as errors:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        started = time.monotonic()
        timer = subprocess.Popen(["sleep", str(arguments.limit)])
        try:
            wall, cpu, ended = 0.0, 0.0, False
            # The limit is looked at without waiting for a line, for a stage may take an hour.
            os.set_blocking(child.stdout.fileno(), False)
            while True:
                line = child.stdout.readline()
                if line.startswith("STAGE "):
                    stage = json.loads(line.removeprefix("STAGE "))
                    report(f"reference: {stage['name']}", stage["wall"], stage["cpu"], stage["rss_kib"])
                    wall, cpu = wall + stage["wall"], cpu + stage["cpu"]
                elif line.startswith("END"):
                    ended = True
                elif not line and child.poll() is not None:
                    break
                elif not line:
                    if timer.poll() is not None:
                        cpu_so_far = process_cpu(child.pid)
                        child.kill()
                        child.wait()
                        print(f"reference: ended after {arguments.limit:.0f} s, in the middle of a stage")
                        return time.monotonic() - started, max(cpu, cpu_so_far), False
                    time.sleep(0.1)
        finally:
            timer.kill()
            timer.wait()
            if child.poll() is None:
                child.kill()
                child.wait()
    if not ended:
        sys.exit(f"the reference failed:\n{log.read_text()[-3000:]}")
    report("reference, these stages", wall, cpu, stage["rss_kib"])
    return wall, cpu, True


def process_cpu(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(ours, theirs, tokenizer):
    ours = json.loads(ours.read_text())
    with open(theirs, "rb") as file:
        theirs = pickle.load(file)
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids.update({token["content"]: token["id"] for token in vocabulary.get("added_tokens", [])})
    theirs = [[ids[token] for token in n_token] for n_token in theirs]
    ours = [n_token["base"] for n_token in ours["n_tokens"]]
    same = next((rank for rank, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    verdict = "the same in the same order" if ours == theirs else f"the same up to rank {same}"
    print(f"n-tokens: {len(ours)} of ours, {len(theirs)} of the reference, {verdict}")


# ---- what runs in the reference's own process


def run_reference(arguments):
    # Before the empty modules are there: it looks for torch while it is imported.
    from transformers import AutoTokenizer, PreTrainedTokenizer  # noqa: F401

    tokenizer = stage("load the tokenizer", AutoTokenizer.from_pretrained, str(arguments.tokenizer))
    for name, members in [("datasets", ["Dataset", "load_dataset"]), ("torch", ["Tensor"]), ("pandas", ["DataFrame"])]:
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            for member in members:
                setattr(module, member, type(member, (), {}))
            sys.modules[name] = module
    source = arguments.reference.resolve() / "src"
    sys.path[:0] = [str(source), str(source / "build_vocab")]
    import utils.constants as constants

    constants.PROCESSED_DATA_PATH = str(arguments.stages / "processed")
    constants.DATASET_STATS_PATH = str(arguments.stages / "stats")
    import find_ngrams_to_add
    import handle_ds_pt
    import reduce_vocab

    config = {
        "original_tokenizer": str(arguments.tokenizer),
        "target_corpus_name": "bench",
        "num_to_add": arguments.add,
        "num_to_remove": arguments.add,
        "analyze_ds_names": [],
        "ngram_k": arguments.max_n,
    }
    with open(arguments.corpus, encoding="utf-8", newline="") as file:
        # Cut where ours cuts: a document ends with the line before the separator.
        texts = file.read().split(SEPARATOR)
        rows = {"text": [text + "\n" for text in texts[:-1] if text.strip()]}
    tokenized = stage("encode", handle_ds_pt.get_tokenized_ds, cfg=config, ds=rows, tokenizer=tokenizer)
    freqs = stage(
        "count tokens", handle_ds_pt.get_tokens_freqs, cfg=config, tokenized_corpus=tokenized, big_corpus_tokenized=None
    )
    removed = stage("remove tokens", reduce_vocab.reduce_vocab, tokenizer, freqs, cfg=config)
    tokenized = stage(
        "encode again (from its cache)", handle_ds_pt.get_tokenized_ds, cfg=config, ds=rows, tokenizer=None
    )
    vocabulary = tokenizer.get_vocab()
    current = [token for token in vocabulary if token not in removed]
    counted = timed(find_ngrams_to_add, "get_affected_ngrams", "count n-grams and overlaps")
    chosen = timed(find_ngrams_to_add, "find_new_vocab", "choose n-tokens")
    find_ngrams_to_add.get_affected_ngrams, find_ngrams_to_add.find_new_vocab = counted, chosen
    added = find_ngrams_to_add.main(
        tokenized_target_ds=tokenized, final_vocab_size=len(vocabulary), current_vocab=current, cfg=config
    )
    with open(arguments.stages / "added.pkl", "wb") as file:
        pickle.dump(added, file)
    print("END", flush=True)


def timed(module, name, what):
    function = getattr(module, name)
    return lambda *positional, **named: stage(what, function, *positional, **named)


def stage(name, function, *positional, **named):
    wall, cpu = time.monotonic(), time.process_time()
    result = function(*positional, **named)
    measured = {
        "name": name,
        "wall": time.monotonic() - wall,
        "cpu": time.process_time() - cpu,
        "rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print("STAGE " + json.dumps(measured), flush=True)
    return result


if __name__ == "__main__":
    main()
