"""Attacks beside honest clients: each alone, then all at once, in one process and in three.

Wanted of the honest clients: no failure, and latencies at most twice those without an attack. Wanted of the server:
memory as before, gauges at 0. Attackers run at a lower priority (nice 10), because they stand for other machines."""

import asyncio
import time
from contextlib import asynccontextmanager

import figures
import honest
from attackers import ATTACKS, launch
from servers import one_process, running, three_processes

NUM_HONEST = 32
BASELINE_S = 15.0
#: How long each takes. Those that only hold something are held for longer than the server's bound of 30 or 60 s.
ALONE_S = {
    "instant_aborts": 15.0,
    "stream_resets": 15.0,
    "zero_windows": 75.0,
    "half_messages": 75.0,
    "silent_connections": 50.0,
    "announced_bodies": 45.0,
    "tokenize_loops": 15.0,
}
TOGETHER_S = 60.0
#: After an attack memory may be so much larger than before. What allocators keep for the next time is in it.
KEPT_BYTES = 128 << 20
#: During one it may grow by so much: the README's bound on bodies that a gateway holds, and once more for their use.
HELD_BYTES = 512 << 20
SETTLE_S = 15.0
MEMORY_INTERVAL_S = 0.1


async def run(context):
    """The scenario."""
    for start in (one_process, three_processes):
        async with running(start, context.fused, report=context.report) as stack:
            bench = _Bench(context, stack)
            await bench.measure_undisturbed()
            if not context.quick:
                for name in ATTACKS:
                    await bench.attack([name], ALONE_S[name])
                await bench.measure_undisturbed()
            await bench.attack(list(ATTACKS), 3.0 if context.quick else TOGETHER_S)


class _Bench:
    """One stack under one attack after the other."""

    def __init__(self, context, stack):
        self.context, self.stack = context, stack
        self.report = context.report
        self.num_honest = 8 if context.quick else NUM_HONEST
        self.undisturbed = None
        self.num_runs = 0

    async def measure_undisturbed(self):
        """What the honest clients get by themselves."""
        seconds = 1.5 if self.context.quick else BASELINE_S
        self.undisturbed = await self._honest(seconds)
        failures = self.undisturbed.failures()
        self.report.check(f"{self.stack.name}, undisturbed: honest failures", "0", self.undisturbed.summary(),
                          self.undisturbed.outcomes and not failures)

    async def attack(self, names, seconds):
        """Runs the attacks beside honest clients and reports."""
        what = f"{self.stack.name}, {names[0] if len(names) == 1 else 'all at once'}"
        before = self.stack.rss_bytes()
        async with _peak_memory(self.stack) as memory:
            honest_clients = asyncio.create_task(self._honest(seconds))
            scale = 0.25 if self.context.quick else 1.0
            reports = await asyncio.gather(*(launch(name, self.stack, seconds, scale) for name in names))
            tally = await honest_clients
        seen = dict(zip(names, reports, strict=True))
        told = "; ".join(f"{name} {seen[name]}" if len(names) > 1 else str(seen[name]) for name in names)
        self.report.note(f"{what}: the attackers saw", told.replace("'", ""))
        unfinished = [name for name in names if isinstance(seen[name], str)]
        self.report.check(f"{what}: attackers without an end", "none", ", ".join(unfinished) or "none", not unfinished)
        self.report.check(f"{what}: honest failures", "0", tally.summary(), tally.outcomes and not tally.failures())
        self._compare(what, tally)
        self._check_bounds(what, seen, seconds)
        busy = await self.stack.busy_gauges()
        self.report.check(f"{what}: gauges afterwards", "all 0", ", ".join(busy) or "all 0", not busy)
        await self._check_memory(what, before, memory.peak)

    async def _honest(self, seconds):
        self.num_runs += 1
        return await honest.run_for(seconds, self.stack.http_url, self.num_honest, seed=self.num_runs)

    def _compare(self, what, tally):
        for name, quantity in (("ITL", honest.Tally.itl), ("TTFT", honest.Tally.ttft)):
            quiet, loud = quantity(self.undisturbed, 0.99), quantity(tally, 0.99)
            times = figures.ratio(loud, quiet)
            got = (f"p99 {figures.ms(quiet)} → {figures.ms(loud)} ({times:.2f} x), p50 "
                   f"{figures.ms(quantity(self.undisturbed, 0.5))} → {figures.ms(quantity(tally, 0.5))}")
            self.report.timing(f"{what}: honest {name}", "p99 within 2 x", got, times <= 2.0)

    def _check_bounds(self, what, reports, seconds):
        """What is held open is closed by the server, where the attack lasts longer than its bound."""
        for name, seen in reports.items():
            if self.context.quick or not isinstance(seen, dict) or seconds < ALONE_S[name]:
                continue
            held = {key: number for key, number in seen.items() if key.endswith("still_open")}
            if held:
                self.report.check(f"{what}: still open after {seconds:.0f} s", "0",
                                  ", ".join(f"{key} {number}" for key, number in held.items()), not any(held.values()))

    async def _check_memory(self, what, before, peak):
        deadline = time.monotonic() + (3.0 if self.context.quick else SETTLE_S)
        while (after := self.stack.rss_bytes()) > before + KEPT_BYTES and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        self.report.check(f"{what}: memory",
                          f"after: at most {figures.mib(KEPT_BYTES)} more, peak: {figures.mib(HELD_BYTES)} more",
                          f"{figures.mib(before)} → peak {figures.mib(peak)} → {figures.mib(after)}",
                          after <= before + KEPT_BYTES and peak <= before + HELD_BYTES)


class _Memory:
    peak = 0


@asynccontextmanager
async def _peak_memory(stack):
    """Looks at the stack's memory again and again meanwhile."""
    memory = _Memory()

    async def watch():
        while True:
            memory.peak = max(memory.peak, stack.rss_bytes())
            await asyncio.sleep(MEMORY_INTERVAL_S)

    task = asyncio.create_task(watch())
    try:
        yield memory
    finally:
        task.cancel()
