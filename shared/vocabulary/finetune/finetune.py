#!/usr/bin/env python3
"""Light fine-tuning of an adapted model (AdaptiVocab, arXiv 2503.19693, section 3.4); see README.md beside this file.

Takes a directory that `fused adapt` wrote and the token ids that `fused vocab encode --to npy` wrote, trains, and writes a
directory of the same form: config.json, tokenizer and patch vocabulary are copied as they are, only weights change.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory that `fused adapt` wrote")
    parser.add_argument("--ids", type=Path, required=True, help="training ids, from `fused vocab encode --to npy`")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--trainable", choices=["light", "full"], default="light",
                        help="light: embeddings, head, first and last layer, final norm (the paper's); full: everything")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4,
                        help="peak; warms up over 3 %% of the steps and falls as a cosine to a tenth")
    parser.add_argument("--context", type=int, default=512, help="tokens of a training sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} is there: name another")
    return args


def fail(message: str) -> None:
    sys.exit(f"finetune.py: {message}")


def load_ids(path: Path, vocab_size: int, context: int) -> torch.Tensor:
    ids = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if ids.ndim != 1 or not numpy.issubdtype(ids.dtype, numpy.integer):
        fail(f"--ids {path} is no flat array of integers, but {ids.dtype} {ids.shape}")
    if len(ids) <= context:
        fail(f"--ids {path} has {len(ids)} tokens, not even one sequence of --context {context}")
    if ids.max() >= vocab_size:
        fail(f"--ids {path} has the id {ids.max()}, but the model has {vocab_size} tokens: made with another vocabulary")
    return torch.from_numpy(ids.astype(numpy.int32))


def light_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Embeddings, output head, first and last layer, final norm."""
    # The list of layers is the longest ModuleList, whatever the family calls it.
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    in_layers = {id(p) for layer in layers for p in layer.parameters()}
    outside = [p for p in model.parameters() if id(p) not in in_layers]
    ends = [*layers[0].parameters(), *(layers[-1].parameters() if len(layers) > 1 else [])]
    return outside + ends


def train(model: torch.nn.Module, ids: torch.Tensor, args: argparse.Namespace) -> dict:
    parameters = list(model.parameters()) if args.trainable == "full" else light_parameters(model)
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=args.weight_decay)
    generator = torch.Generator().manual_seed(args.seed)
    # Every epoch cuts the text at other places. A token is seen once in it, but for the rest at the two ends.
    num_sequences = (len(ids) - args.context) // args.context
    steps_per_epoch = max(1, num_sequences // args.batch)
    num_steps = args.epochs * steps_per_epoch
    warm_up = max(1, num_steps * 3 // 100)
    started, log, step = time.monotonic(), [], 0
    window = torch.arange(args.context + 1)
    model.train()
    for epoch in range(args.epochs):
        offset = int(torch.randint(args.context, (1,), generator=generator))
        order = torch.randperm(num_sequences, generator=generator)
        for batch in order[: steps_per_epoch * args.batch].split(args.batch):
            progress = step / num_steps
            rate = min(1.0, (step + 1) / warm_up) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate
            starts = (batch * args.context + offset).clamp(max=len(ids) - args.context - 1)
            tokens = ids[starts[:, None] + window].long().to(args.device)
            with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
                logits = model(input_ids=tokens[:, :-1]).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % max(1, num_steps // 20) == 0 or step == num_steps:
                log.append({"step": step, "loss": round(loss.item(), 4)})
                print(f"step {step}/{num_steps}  loss {loss.item():.4f}  {time.monotonic() - started:.1f} s", flush=True)
    trained = sum(parameter.numel() for parameter in parameters)
    return {"num_steps": num_steps, "seconds": round(time.monotonic() - started, 1), "trained_parameters": trained,
            "parameters": sum(parameter.numel() for parameter in model.parameters()), "log": log}


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    config = json.loads((args.model / "config.json").read_text())
    # Weights are kept in f32 while they are trained and written in the precision they came in.
    dtype = AutoModelForCausalLM.from_pretrained(args.model).dtype
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    if model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr():
        fail(f"--model {args.model} has tied embeddings: it is no directory of `fused adapt`")
    ids = load_ids(args.ids, config["vocab_size"], args.context)
    print(f"{len(ids)} tokens, {args.trainable}, {args.epochs} epoch(s), on {args.device}", flush=True)
    report = train(model, ids, args)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        made = Path(folder) / "model"
        model.eval().to("cpu", dtype).save_pretrained(made)
        for path in made.iterdir():
            path.chmod(0o644)  # safetensors makes files readable for their owner only
        # What says which vocabulary this is must stay as `fused adapt` wrote it.
        weights = {path.name for path in args.model.glob("*.safetensors*")}
        for path in args.model.iterdir():
            if path.is_file() and path.name not in weights:
                shutil.copyfile(path, made / path.name)
        settings = {key: value.name if isinstance(value, Path) else value for key, value in vars(args).items()}
        (made / "finetune.json").write_text(json.dumps({"settings": settings, **report}, indent=1) + "\n")
        made.rename(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
