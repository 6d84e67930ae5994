"""Prints what a run of the reference wrote, as JSON: the pickles are read without running anything they name."""

import json
import lzma
import pickle
import sys
from collections import defaultdict
from pathlib import Path


class State:
    """Stands for any class of the pickle; keeps its state."""

    def __new__(cls, *_):
        return object.__new__(cls)

    def __setstate__(self, state):
        self.state = state


class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("collections", "defaultdict"):
            return defaultdict
        if (module, name) == ("builtins", "int"):
            return int
        return type(name, (State,), {})


def read(run, name):
    plain, packed = run / name, run / (name + ".xz")
    if not plain.exists() and not packed.exists():
        return None
    with open(plain, "rb") if plain.exists() else lzma.open(packed) as file:
        return Reader(file).load()


run = Path(sys.argv[1])
stages = sys.argv[2:] == ["--stages"]
freqs = read(run, "stage_ngram_freqs.pkl")
queue = [ngram for ngram in freqs or () if len(ngram) > 1]
affected, tokenizer = [], b""
if stages:
    place = {ngram: place for place, ngram in enumerate(queue)}
    counted = read(run, "stage_affected_dict.pkl")
    affected = [
        [(place[other], times) for other, times in counted.get(ngram, {}).items() if other in place]
        for ngram in queue
    ]
    tokenizer = read(run, "patch_tokenizer.pkl")["existing_tokenizer"].state["_tokenizer"].state
json.dump(
    {
        "removed": list(read(run, "removed_tokens.pkl").items()),
        "added": list(read(run, "added_ngrams.pkl").items()),
        "token_freqs": list((read(run, "stage_token_freqs.pkl") or {}).items()),
        "queue": [(ngram, freqs[ngram]) for ngram in queue],
        "affected": affected,
        "tokenizer": tokenizer.decode(),
    },
    sys.stdout,
)
