"""Makes eval.json: how many bits demo-llama, without a patch vocabulary, needs for three small documents, with Hugging Face
transformers on the CPU in single precision.

    python3 -m venv /tmp/venv-golden
    /tmp/venv-golden/bin/pip install torch transformers tokenizers
    /tmp/venv-golden/bin/python tests/golden/make_eval.py

Windows as `fused eval` cuts them: the first has `context` tokens, each further one ends `stride` tokens later and begins
`context` tokens before its end; scored are the tokens that no window before it scored. `apart`: each document alone behind
the end-of-text token, which is not scored. `joined`: one stream, in which the later end-of-text tokens are scored.
"""

import json
import math
import pathlib

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parent
MODEL = GOLDEN.parent / "models" / "demo-llama"

DOCUMENTS = [
    "# tar\n\n> Archive files.\n\n- Create an archive from files:\n\n`tar cf {{path/to/archive.tar}} {{path/to/file1}}`\n",
    "A queue in front of a server is a promise. Every request that waits in it was told that its turn will come, and the "
    "longer the queue, the older the promise is when it is kept.\n",
    "x\n",
]
CONTEXT, STRIDE = 24, 10


def bits(model, text):
    total, scored = 0.0, 1
    while scored < len(text):
        end = min(CONTEXT if scored == 1 else scored + STRIDE, len(text))
        start = max(0, end - CONTEXT)
        window = torch.tensor([text[start:end]])
        with torch.no_grad():
            logprobs = model(input_ids=window[:, :-1]).logits[0].double().log_softmax(-1)
        own = logprobs.gather(1, window[0, 1:, None])[:, 0]
        total -= own[scored - start - 1:].sum().item() / math.log(2)
        scored = end
    return total


def main():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    encoded = [[0] + tokenizer.encode(document, add_special_tokens=False).ids for document in DOCUMENTS]
    joined = sum(encoded, [])
    golden = {
        "documents": DOCUMENTS,
        "context": CONTEXT,
        "stride": STRIDE,
        "apart": {"bits": sum(bits(model, text) for text in encoded), "tokens": sum(len(text) - 1 for text in encoded)},
        "joined": {"bits": bits(model, joined), "tokens": len(joined) - 1},
    }
    (GOLDEN / "eval.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
