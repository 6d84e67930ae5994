#!/usr/bin/env python3
"""Makes adaptivocab-toy/: pickles as AdaptiVocab's own code would write them, for a toy tokenizer of 128 tokens.

Needs nothing but Python: the classes that the pickles name are stand-ins of the same names, made here. What texts must be
encoded to (expected.json) comes from the plain loops below, which share nothing with the Rust code.

    python3 tests/golden/make_adaptivocab_toy.py
"""

import collections
import io
import json
import pathlib
import pickle
import random
import struct
import sys
import types

OUT = pathlib.Path(__file__).parent / "adaptivocab-toy"
HIDDEN = 48  # of tests/models/tiny-llama3, which the toy can be served with

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>"]
# GPT-2's table maps these bytes to themselves, a space to Ġ and a line feed to Ċ.
CHARS = ["Ċ", "Ġ"] + [chr(code) for code in range(0x21, 0x7F)]
MERGES = """Ġ t|h e|Ġt he|i n|a t|Ġ a|e r|Ġ c|o n|r e|Ġ s|e n|Ġ m|o r|Ġc at|Ġs at|Ġm at|n d|Ġa nd|Ġ o|Ġ on|Ġ f|e s|i s
Ġ is|o u|Ġ w|a s|Ġw as""".replace("\n", "|").split("|")
MERGES = [tuple(merge.split(" ")) for merge in MERGES]
TOKENS = SPECIAL + CHARS + ["".join(merge) for merge in MERGES]
IDS = {token: idx for idx, token in enumerate(TOKENS)}

REMOVED = {
    "Ġwas": ["Ġw", "as"],
    "es": ["e", "s"],
    "~": None,  # cannot be removed: it has no parts; shows that only those with parts are
    "Ġis": ["Ġ", "is"],
    "ou": ["o", "u"],
    "Ġf": ["Ġ", "f"],
    "en": ["e", "n"],
}
REMOVED = {token: parts for token, parts in REMOVED.items() if parts}
# In rank order. The third holds a removed token and the fourth a special one: neither can ever match.
NGRAMS = [("Ġthe", "Ġcat"), ("Ġcat", "Ġsat", "Ġ"), ("Ġwas", "Ġa"), ("Ċ", "<|end|>"), ("Ġ", "f"), ("Ġthe", "Ġcat", "Ġsat")]
FREQS = [90, 41, 40, 12, 11, 3]
assert len(TOKENS) == len(IDS) == 128 and len(REMOVED) == len(NGRAMS)

TEXTS = [
    "",
    " the cat sat on the mat",
    "the cat sat  \n the cat sat",
    " the cat was a cat and the mat is for foxes in our den",
    "one <|end|> two<|begin|>three",
    "ends\n<|end|>",
    "\n\n{\"json\": [1, 2.5e3], \"tilde\": \"~\"}",
]


def bpe(text):
    """Base tokens of a text without special tokens: always the merge of the lowest rank, leftmost first."""
    tokens = ["Ġ" if char == " " else "Ċ" if char == "\n" else char for char in text]
    while True:
        pairs = [(MERGES.index(pair), i) for i, pair in enumerate(zip(tokens, tokens[1:])) if pair in MERGES]
        if not pairs:
            return tokens
        _, i = min(pairs)
        tokens[i : i + 2] = ["".join(tokens[i : i + 2])]


def tokenize(text):
    found = [(text.find(special), special) for special in SPECIAL if special in text]
    if not found:
        return bpe(text)
    at, special = min(found)
    return bpe(text[:at]) + [special] + tokenize(text[at + len(special) :])


def patched(tokens):
    kept = [part for token in tokens for part in REMOVED.get(token, [token])]
    matching = [ngram for ngram in NGRAMS if not set(ngram) & set(SPECIAL)]
    out, i = [], 0
    while i < len(kept):
        ngram = next((n for n in matching if tuple(kept[i : i + len(n)]) == n), None)
        out.append(ngram or kept[i])
        i += len(ngram) if ngram else 1
    return out


def module_of(name):
    """A module of this name and the packages that it lies in, empty unless they are there."""
    for end in [idx for idx, char in enumerate(name) if char == "."] + [len(name)]:
        sys.modules.setdefault(name[:end], types.ModuleType(name[:end]))
    return sys.modules[name]


def stand_in(module, name, **members):
    made = type(name, (), {"__module__": module, "__qualname__": name, **members})
    setattr(module_of(module), name, made)
    return made


def with_state(state):
    return {"__getstate__": lambda self: state}


def tokenizer_json():
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": IDS[token], "content": token, **added} for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": IDS, "merges": [list(merge) for merge in MERGES],
        },
    }  # fmt: skip


def storage(values):
    """What torch.save wrote before it wrote archives."""
    float_storage = stand_in("torch", "FloatStorage")

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", float_storage, "1", "cpu", len(values), None) if obj == "the storage" else None

    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    out = io.BytesIO()
    for obj in [119547037146038801333356, 1001, system, "the storage", ["1"]]:
        Pickler(out, 2).dump(obj)
    return out.getvalue() + struct.pack("<Q", len(values)) + struct.pack(f"<{len(values)}f", *values)


def function(module, name):
    def made(*_):
        raise AssertionError("never called")

    made.__module__, made.__qualname__, made.__name__ = module, name, name
    setattr(module_of(module), name, made)
    return made


def tensor(values, rows):
    load = function("torch.storage", "_load_from_bytes")
    rebuild = function("torch._utils", "_rebuild_tensor_v2")
    saved = types.SimpleNamespace(reduced=(load, (storage(values),)))
    args = (saved, 0, (rows, HIDDEN), (HIDDEN, 1), True, collections.OrderedDict())
    whole = types.SimpleNamespace(reduced=(rebuild, args))

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj):
            return obj.reduced if isinstance(obj, types.SimpleNamespace) else NotImplemented

    out = io.BytesIO()
    Pickler(out, 4).dump(whole)
    return out.getvalue()


def main():
    rng = random.Random(7)
    OUT.mkdir(exist_ok=True)
    model_class = stand_in("tokenizers.models", "Model", **with_state(b'{"type":"BPE"}'))
    json_text = json.dumps(tokenizer_json(), ensure_ascii=False, separators=(",", ":")).encode()
    tokenizer_class = stand_in(
        "tokenizers", "Tokenizer", __getnewargs__=lambda self: (model_class(),), **with_state(json_text)
    )
    added_class = stand_in("tokenizers", "AddedToken", **with_state({"content": "<|end|>", "special": True}))
    outer_state = {
        "add_prefix_space": False, "_tokenizer": tokenizer_class(), "init_kwargs": {"eos_token": added_class()},
        "model_max_length": 10**30, "clean_up_tokenization_spaces": False, "chat_template": None,
    }  # fmt: skip
    outer = stand_in("transformers.tokenization_utils_fast", "PreTrainedTokenizerFast", **with_state(outer_state))
    outer_5 = stand_in("transformers.models.llama.tokenization_llama", "LlamaTokenizer", **with_state(outer_state))

    kept = [token for token in TOKENS if token not in REMOVED]
    rng.shuffle(kept)
    converter = {token: {"old_indices": IDS[token], "new_index": new} for new, token in enumerate(kept)}
    for new, ngram in enumerate(NGRAMS, len(kept)):
        converter[ngram] = {"old_indices": [IDS[token] for token in ngram], "new_index": new}
    # As if encoding "  cat sat " alone had given other tokens.
    converter[NGRAMS[1]]["old_indices"] = [IDS[token] for token in ("Ġc", "at", "Ġsat", "Ġ")]
    ngrams = dict(zip(NGRAMS, FREQS))
    whole = {
        "existing_tokenizer": outer(), "ngram_dict": ngrams, "removed_tokens": REMOVED, "id_converter": converter,
        "token_to_id_dict": {token: entry["new_index"] for token, entry in converter.items()},
        "id_to_token_dict": {entry["new_index"]: token for token, entry in converter.items()},
    }  # fmt: skip
    files = {
        "tokenizer.json": json_text,
        "patch_tokenizer.pkl": pickle.dumps(whole, 4),
        "removed_tokens.pkl": pickle.dumps(REMOVED, 4),
        "added_ngrams.pkl": pickle.dumps(ngrams, 4),
        "inputs_ids_convert.pkl": pickle.dumps(converter, 4),
        # As Python 3.14 and transformers 5 write it, where the classes have other names.
        "patch_tokenizer_transformers5.pkl": pickle.dumps({**whole, "existing_tokenizer": outer_5()}, 5),
    }
    rows = []
    for text in TEXTS:
        tokens = tokenize(text)
        ids = [converter[token]["new_index"] for token in patched(tokens)]
        rows.append({"text": text, "base_ids": [IDS[token] for token in tokens], "patch_ids": ids})
    firsts = {}
    for side in ["input", "output"]:
        values = [rng.randrange(-64, 64) / 256 for _ in range(len(converter) * HIDDEN)]
        files[f"embedding_{side}_exp_emb.pkl"] = tensor(values, len(converter))
        firsts[side] = {"first": values[:3], "last": values[-3:]}
    expected = {"rows": rows, "embeddings": firsts, "num_never_matching": 2, "num_other_rows": 1}
    files["expected.json"] = (json.dumps(expected, indent=1, ensure_ascii=False) + "\n").encode()
    for name, content in files.items():
        (OUT / name).write_bytes(content)


main()
