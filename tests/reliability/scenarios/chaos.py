"""One gateway, two tokenizers and two engines as processes under the traffic of two gateways; each role in turn is
drained, killed, stopped for a while, and stopped and then killed, and each time started again.

A request may fail only if its answer had begun before the fault, on the process at fault: somebody has part of it
already, and the rest is gone. A client cannot tell where it was, but half of them were elsewhere. While the only
gateway is away, nobody can be answered: those that are not let in then do not count as failures."""

import asyncio
import signal
import time

import figures
import honest
from servers import Process, Stack, free_port, running

NUM_CLIENTS = 64
NUM_TOKENS = 32
BEFORE_S = 5.0
#: From the fault to the end of the measurement; what is down is up again DOWN_S after the fault.
AFTER_S = 20.0
DOWN_S = 6.0
#: Throughput is looked at in pieces of so much time.
PIECE_S = 0.5
#: A client gives up then: none that was not begun may hang for so long.
TIMEOUT_S = 30.0

#: A process that says nothing is known for it after 6 s, and its requests go elsewhere at once then.
ELSEWHERE_S = 8.0

ROLES = ("engine", "tokenizer", "gateway")
FAULTS = ("drain", "kill", "stop and go on", "stop and kill")


async def run(context):
    """The scenario."""
    chosen = [(role, fault) for role in ROLES for fault in FAULTS]
    if context.quick:
        chosen = [("engine", "kill"), ("tokenizer", "drain")]
    async with running(start, context.fused, report=context.report) as stack:
        for role, fault in chosen:
            await _Case(context, stack, role, fault).run()
        busy = await stack.busy_gauges()
        context.report.check("chaos: gauges afterwards", "all 0", ", ".join(busy) or "all 0", not busy)


def start(fused):
    """Two engines, two tokenizers that know both, a gateway that knows both of those. Ports are chosen here, so that
    a process that is started again has the same; replicas have the same port at different addresses, as pods do."""
    def replicas(role, *flags):
        port = free_port()
        hosts = ("127.0.0.2", "127.0.0.3")
        metrics = free_port()
        return [Process(fused, role, "--host", host, "--grpc-port", port, "--metrics-port", metrics, *flags)
                for host in hosts]

    def known(flag, processes):
        return [part for process in processes for part in (flag, process.url)]

    engines = replicas("engine")
    tokenizers = replicas("tokenizer", *known("--engine", engines))
    gateway = Process(fused, "gateway", "--port", free_port(), *known("--tokenizer", tokenizers))
    metrics = [gateway.url, *(process.urls[1] for process in tokenizers + engines)]
    return Stack("five processes", gateway.url, tokenizers[0].url, metrics, [gateway, *tokenizers, *engines])


class _Case:
    """One fault of one role."""

    def __init__(self, context, stack, role, fault):
        self.context, self.stack, self.role, self.fault = context, stack, role, fault
        self.report = context.report
        self.what = f"{role}: {fault}"
        self.victim = next(process for process in stack.processes if process.role == role)
        self.at = self.healed = 0.0
        self.before_s, self.after_s, self.down_s = (1.5, 4.0, 1.0) if context.quick else (BEFORE_S, AFTER_S, DOWN_S)

    async def run(self):
        num_clients = 16 if self.context.quick else NUM_CLIENTS
        began = time.monotonic()
        async with honest.Clients(self.stack.http_url, num_clients, NUM_TOKENS, timeout_s=TIMEOUT_S) as clients:
            await asyncio.sleep(self.before_s)
            self.at = time.monotonic()
            await self._hurt()
            self.healed = time.monotonic()
            # Counted from the healing: a drain lasts as long as it lasts.
            await asyncio.sleep(max(self.after_s - (self.healed - self.at), self.after_s / 2))
            ended = time.monotonic()
        self._judge(clients.tally.outcomes)
        self._throughput(clients.tally.outcomes, began, ended)
        await self.stack.wait_ready()

    async def _hurt(self):
        victim = self.victim
        if self.fault == "drain":
            victim.signal(signal.SIGTERM)
            status = await asyncio.to_thread(victim.child.wait, 60)
            self.report.check(f"{self.what}: exit status", "0", status, status == 0)
            await asyncio.sleep(self.down_s / 3)
            await asyncio.to_thread(victim.restart)
            return
        victim.signal(signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        await asyncio.sleep(self.down_s if self.fault == "kill" else self.down_s * 2)
        if self.fault == "stop and go on":
            victim.signal(signal.SIGCONT)
            return
        victim.child.kill()
        await asyncio.to_thread(victim.restart)

    def _judge(self, outcomes):
        failed = [outcome for outcome in outcomes if outcome.failure]
        begun = [outcome for outcome in failed if outcome.first and outcome.began < self.at]
        running_then = sum(o.began < self.at and o.ended > self.at and bool(o.first) and o.first < self.at
                           for o in outcomes)
        # The answer had begun before the fault, and the fault ended it.
        allowed = [o for o in begun if o.first < self.at and self.fault != "drain"]
        if self.role == "gateway":
            # Nobody is there to answer; while one drains it says so.
            allowed += [o for o in failed if not o.first and o.began < self.healed + 1.0
                        and o.failure.startswith(("no answer", "503 shutting_down"))]
        others = [o for o in failed if o not in allowed]
        self.report.check(
            f"{self.what}: failed that had not begun" if self.fault != "drain" else f"{self.what}: failed",
            "0", f"{len(others)} of {len(outcomes)} {figures.counted(o.failure for o in others)}".strip(), not others)
        if self.role == "gateway":
            return
        if self.fault != "drain":
            self.report.timing(f"{self.what}: failed that had begun", "at most three quarters: half were elsewhere",
                               f"{len(allowed)} of the {running_then} begun then "
                               f"{figures.counted(o.failure for o in allowed)}".strip(),
                               len(allowed) <= 0.75 * running_then)
        waits = [o.ttft() for o in outcomes if o.first and o.ended > self.at]
        longest = figures.quantile(waits, 1.0)
        self.report.timing(f"{self.what}: longest wait for a first token", f"within {ELSEWHERE_S:.0f} s",
                           figures.ms(longest), longest is not None and longest <= ELSEWHERE_S)

    def _throughput(self, outcomes, began, ended):
        """Tokens a second before, and how long it was under half of that afterwards."""
        tokens = [moment for outcome in outcomes for moment in outcome.moments()]
        before = sum(began + 1.0 <= at < self.at for at in tokens) / (self.at - began - 1.0 or 1.0)
        low_until = self.at
        piece = self.at
        while piece + PIECE_S <= ended:
            rate = sum(piece <= at < piece + PIECE_S for at in tokens) / PIECE_S
            piece += PIECE_S
            if rate < before / 2:
                low_until = piece
        after = sum(ended - 3.0 <= at < ended for at in tokens) / 3.0
        self.report.timing(
            f"{self.what}: throughput", "at the end over half of before",
            f"{before:.0f} → {after:.0f} tokens/s; under half until {low_until - self.at:.1f} s after the fault",
            after > before / 2)
