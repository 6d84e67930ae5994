"""Everything together for a long time: mixed requests, clients that hang up, gentle attacks.

Wanted: no error, no slope of memory, no alarm of the watchdog and no moment of being unready, gauges at 0."""

import asyncio
import random
import re
import time

import figures
import honest
import http1
from attackers import launch
from servers import one_process, running

NUM_CLIENTS = 12
#: A tenth of the attacks of `attacks`; each of them for PULSE_S, one after the other. Those that fill queues for
#: everybody (zero windows, announced bodies) are that small for the same reason.
SCALE = 0.1
PULSE_S = 10.0
ATTACKS = ("instant_aborts", "stream_resets", "half_messages", "silent_connections", "tokenize_loops",
           "announced_bodies", "zero_windows")
MEMORY_INTERVAL_S = 1.0
#: Memory of the last half of the run may rise by so much in all.
GROWTH_BYTES = 32 << 20
#: What the log says when something is wrong that no request tells.
ALARM = re.compile(r"watchdog|no progress|has not landed|panicked|\bERROR\b", re.IGNORECASE)


async def run(context):
    """The scenario."""
    report = context.report
    seconds = 5.0 if context.quick else context.soak_minutes * 60
    async with running(one_process, context.fused, report=report) as stack:
        soak = _Soak(stack, seconds)
        await soak.run()
        errors = figures.counted(soak.errors)
        report.check("soak: errors", "0", f"{len(soak.errors)} of {soak.num_requests} {errors}".strip(),
                     soak.num_requests and not soak.errors)
        report.note("soak: requests by kind", ", ".join(f"{kind} {num}" for kind, num in sorted(soak.kinds.items())))
        report.check("soak: /ready", "always 200", figures.counted(soak.readiness), set(soak.readiness) == {200})
        alarms = [line for line in stack.log().splitlines() if ALARM.search(line)]
        report.check("soak: alarms in the log", "0", f"{len(alarms)} {' / '.join(alarms[:2])[:300]}".strip(),
                     not alarms)
        busy = await stack.busy_gauges()
        report.check("soak: gauges afterwards", "all 0", ", ".join(busy) or "all 0", not busy)
        growth = figures.slope(_floor(soak.memory, seconds)) * seconds / 2
        sizes = [size for _, size in soak.memory]
        report.timing("soak: memory's slope over the last half", f"under {figures.mib(GROWTH_BYTES)} in all",
                      f"{figures.mib(growth)}; first {figures.mib(sizes[0])}, most {figures.mib(max(sizes))}, last "
                      f"{figures.mib(sizes[-1])}", growth < GROWTH_BYTES)


def _floor(memory, seconds):
    """The least memory in each round of all attacks of the last half: what some of them hold for a while is no slope.
    A run that is too short for that has its points as they are."""
    late = [point for point in memory if point[0] > seconds / 2]
    round_s = PULSE_S * len(ATTACKS)
    rounds = {}
    for at, size in late:
        rounds.setdefault(int(at / round_s), []).append((size, at))
    floors = [(at, size) for size, at in map(min, rounds.values())]
    return floors if len(floors) > 3 else late


class _Soak:
    """The traffic and what it saw."""

    def __init__(self, stack, seconds):
        self.stack, self.url = stack, stack.http_url
        self.began = time.monotonic()
        self.ends = self.began + seconds
        self.errors, self.readiness, self.memory = [], [], []
        self.kinds = {}
        self.num_requests = 0

    async def run(self):
        clients = [self._client(random.Random(f"soak/{idx}")) for idx in range(NUM_CLIENTS)]
        await asyncio.gather(self._watch(), self._attack(), *clients)

    def goes_on(self):
        return time.monotonic() < self.ends

    async def _client(self, rng):
        kinds = (self._stream, self._stream, self._abort, self._long_prompt, self._several, self._stop, self._logprobs,
                 self._chat, self._tokenize)
        while self.goes_on():
            ask = rng.choice(kinds)
            kind = ask.__name__.strip("_")
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            self.num_requests += 1
            try:
                fault = await ask(rng)
            except (OSError, EOFError, TimeoutError, KeyError, ValueError, IndexError) as error:
                fault = type(error).__name__
            if fault:
                self.errors.append(f"{kind}: {fault}")
            await asyncio.sleep(rng.expovariate(10))

    async def _stream(self, rng):
        return (await honest.ask(self.url, honest.prompt(rng), rng.randint(1, 120))).failure

    async def _long_prompt(self, rng):
        """As near to the context of 1,024 as ids can tell."""
        ids = [rng.randrange(300, 3000) for _ in range(1000)]
        return (await honest.ask(self.url, ids, 20)).failure

    async def _abort(self, rng):
        """Hangs up somewhere in the answer."""
        asking = asyncio.create_task(honest.ask(self.url, honest.prompt(rng), 400))
        await asyncio.wait([asking], timeout=rng.uniform(0, 0.5))
        asking.cancel()
        await asyncio.wait([asking])

    async def _several(self, rng):
        answer = await self._complete(rng, n=4, max_tokens=40, seed=rng.randrange(1000))
        return None if len(answer["choices"]) == 4 else "wrong number of choices"

    async def _stop(self, rng):
        choice = (await self._complete(rng, stop=["e", "\n"], max_tokens=60))["choices"][0]
        return None if "e" not in choice["text"] else "the stop string is in the text"

    async def _logprobs(self, rng):
        choice = (await self._complete(rng, logprobs=5, max_tokens=20, ignore_eos=True))["choices"][0]
        return None if len(choice["logprobs"]["tokens"]) == 20 else "wrong number of log-probabilities"

    async def _chat(self, rng):
        messages = [{"role": "user", "content": " ".join(rng.choice(honest.WORDS) for _ in range(8))}]
        answer = await http1.post(self.url, "/v1/chat/completions", {"messages": messages, "max_tokens": 40})
        return None if answer.status == 200 and answer.json()["choices"] else f"{answer.status} {answer.error_code()}"

    async def _tokenize(self, rng):
        text = honest.prompt(rng, rng.randint(1, 2000))
        ids = (await http1.post(self.url, "/tokenize", {"prompt": text})).json()["tokens"]
        back = (await http1.post(self.url, "/detokenize", {"tokens": ids})).json()["prompt"]
        return None if text in back else "the text does not come back"

    async def _complete(self, rng, **fields):
        answer = await http1.post(self.url, "/v1/completions", {"prompt": honest.prompt(rng), **fields})
        if answer.status != 200:
            raise ValueError(f"{answer.status} {answer.error_code()}")
        return answer.json()

    async def _watch(self):
        """Memory and readiness, each second."""
        while self.goes_on():
            self.memory.append((time.monotonic() - self.began, self.stack.rss_bytes()))
            try:
                self.readiness.append((await http1.get(self.url, "/ready")).status)
            except (OSError, EOFError, TimeoutError) as error:
                self.readiness.append(type(error).__name__)
            await asyncio.sleep(MEMORY_INTERVAL_S)

    async def _attack(self):
        """One gentle attack after the other."""
        num = 0
        while self.goes_on():
            seconds = min(PULSE_S, max(self.ends - time.monotonic(), 0.1))
            seen = await launch(ATTACKS[num % len(ATTACKS)], self.stack, seconds, SCALE)
            if isinstance(seen, str):
                self.errors.append(f"{ATTACKS[num % len(ATTACKS)]} {seen}")
            num += 1
