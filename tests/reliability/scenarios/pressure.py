"""Short chats with and without 1 % of very long prompts beside them, on the CPU: the demo model, its context set to
4,096 tokens (rotary positions need no further weights; what it writes there is nonsense, and nobody reads it).

The same arrivals twice, at a rate that the server has the time for, long ones included. Wanted of the short ones: ITL
and TTFT within 1.3 times of those without the long ones."""

import asyncio
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import figures
import honest
from servers import one_process, running

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo-llama-tldr"
CONTEXT = 4096
LONG_PROMPT = 4000
LONG_OUTPUT = 32
SHARE_OF_LONG = 0.01
#: Share of the server's time that all arrivals take together.
LOAD = 0.6
WITHIN = 1.3
#: Token ids that are words of the model's vocabulary, neither bytes nor special ones.
IDS = range(300, 3000)


async def run(context):
    """The scenario."""
    report, quick = context.report, context.quick
    seconds = 3.0 if quick else 60.0
    with tempfile.TemporaryDirectory(prefix="fused-pressure-") as folder:
        model = _with_context(Path(folder) / "demo", 2048 if quick else CONTEXT)
        async with running(one_process, context.fused, "--model", model, report=report) as stack:
            short_s = 1 / await _sustained(stack.http_url, 1.5 if quick else 8.0)
            long_s = await _time_of_long(stack.http_url, quick)
            rate = LOAD / (short_s + SHARE_OF_LONG * long_s)
            without = _arrivals(rate, seconds, 0.0, quick)
            beside = _arrivals(rate, seconds, SHARE_OF_LONG, quick)
            quiet, _ = await _replay(stack.http_url, without)
            loud, long = await _replay(stack.http_url, beside)
            report.note("pressure: arrivals", f"{rate:.1f} short requests/s for {seconds:.0f} s, "
                        f"{len(long.outcomes)} prompts of {_long_prompt(quick)} tokens beside them, each "
                        f"{figures.ms(long_s)} alone")
            for name, tally in (("short alone", quiet), ("short beside long", loud), ("long", long)):
                report.check(f"pressure: {name}: failures", "0", tally.summary(),
                             tally.outcomes and not tally.failures())
            for name, quantity in (("ITL", honest.Tally.itl), ("TTFT", honest.Tally.ttft)):
                for q in (0.5, 0.99):
                    alone, together = quantity(quiet, q), quantity(loud, q)
                    times = figures.ratio(together, alone)
                    report.timing(f"pressure: {name} of the short, p{q * 100:.0f}", f"within {WITHIN} x",
                                  f"{figures.ms(alone)} → {figures.ms(together)} ({times:.2f} x)", times <= WITHIN)
            report.note("pressure: TTFT of the long", f"p50 {figures.ms(long.ttft(0.5))}")


def _with_context(folder, tokens):
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = tokens
    (folder / "config.json").write_text(json.dumps(config))
    return folder


async def _sustained(url, seconds):
    """Short requests a second that 32 clients get served."""
    rng = random.Random(5)
    ends = time.monotonic() + seconds
    num = 0

    async def loop():
        nonlocal num
        while time.monotonic() < ends:
            await honest.ask(url, *_short(rng))
            num += 1

    began = time.monotonic()
    await asyncio.gather(*(loop() for _ in range(32)))
    return num / (time.monotonic() - began)


async def _time_of_long(url, quick):
    """Seconds that a long request takes by itself."""
    rng = random.Random(6)
    outcome = await honest.ask(url, [rng.choice(IDS) for _ in range(_long_prompt(quick))], LONG_OUTPUT)
    return outcome.ended - outcome.began


def _short(rng):
    """A chat's turn: 20 to 120 prompt tokens, 16 to 128 output tokens, most of them few."""
    ids = [rng.choice(IDS) for _ in range(rng.randint(20, 120))]
    return ids, min(16 + int(rng.expovariate(1 / 32)), 128)


def _long_prompt(quick):
    return 1800 if quick else LONG_PROMPT


def _arrivals(rate, seconds, share, quick):
    """(time, prompt, output tokens, is it long) of Poisson arrivals. The short ones are the same for every share: the
    long ones come beside them, evenly, at least one."""
    rng = random.Random(11)
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        arrivals.append((at, *_short(rng), False))
    num_long = max(round(len(arrivals) * share), 1) if share else 0
    for idx in range(num_long):
        ids = [rng.choice(IDS) for _ in range(_long_prompt(quick))]
        arrivals.append(((idx + 0.5) / num_long * seconds, ids, LONG_OUTPUT, True))
    return sorted(arrivals, key=lambda arrival: arrival[0])


async def _replay(url, arrivals):
    """The tallies of the short and of the long requests."""
    began = time.monotonic()
    short, long = [], []
    for at, ids, num_tokens, is_long in arrivals:
        await asyncio.sleep(max(began + at - time.monotonic(), 0.0))
        (long if is_long else short).append(asyncio.create_task(honest.ask(url, ids, num_tokens)))
    return honest.Tally(await asyncio.gather(*short)), honest.Tally(await asyncio.gather(*long))
