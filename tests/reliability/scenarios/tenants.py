"""One tenant far over its limits beside an honest one that has none.

Wanted: the honest one does not notice; the other gets what its limits allow and no more, is told when to come back, and
is let in then; a change of the file takes effect while both go on."""

import asyncio
import tempfile
import time
from pathlib import Path

import figures
import honest
import http1
from servers import one_process, running

REQUESTS_PER_MINUTE = 120
IN_FLIGHT = 4
GREEDY = "key-of-the-greedy"
HONEST = "key-of-the-honest"
NUM_HONEST = 8
NUM_GREEDY = 64
NUM_TOKENS = 32
#: How late a client may notice what it is sent.
BLUR_S = 0.05
#: Times that a refused client comes back.
NUM_RETURNS = 5
#: How long the server may take to see that the file has changed.
RELOAD_S = 10.0


async def run(context):
    """The scenario."""
    report, quick = context.report, context.quick
    seconds = 3.0 if quick else 20.0
    with tempfile.TemporaryDirectory(prefix="fused-tenants-") as folder:
        file = Path(folder) / "tenants.toml"
        file.write_text(_tenants(with_greedy=True), encoding="utf-8")
        async with running(one_process, context.fused, "--tenants-file", file, report=report) as stack:
            url = stack.http_url
            alone = await honest.run_for(seconds, url, NUM_HONEST, num_tokens=NUM_TOKENS, headers=_key(HONEST))
            beside, greedy = await asyncio.gather(
                honest.run_for(seconds, url, NUM_HONEST, num_tokens=NUM_TOKENS, headers=_key(HONEST)),
                _greed(url, seconds))
            _judge(report, alone, beside, greedy, seconds)
            if not quick:
                await _come_back(report, url)
            async with honest.Clients(url, NUM_HONEST, NUM_TOKENS, headers=_key(HONEST)) as clients:
                file.write_text(_tenants(with_greedy=False), encoding="utf-8")
                status = await _status_after_removal(url)
            report.check("tenants: a key that is taken out of the file", f"401 within {RELOAD_S:.0f} s", status,
                         status == 401)
            report.check("tenants: honest failures meanwhile", "0", clients.tally.summary(),
                         clients.tally.outcomes and not clients.tally.failures())


def _tenants(with_greedy):
    tenants = f'[[tenant]]\nname = "honest"\nkeys = ["{HONEST}"]\n'
    if with_greedy:
        tenants += (f'\n[[tenant]]\nname = "greedy"\nkeys = ["{GREEDY}"]\nrequests_per_minute = {REQUESTS_PER_MINUTE}\n'
                    f"max_requests_in_flight = {IN_FLIGHT}\n")
    return tenants


def _key(key):
    return {"Authorization": f"Bearer {key}"}


async def _greed(url, seconds):
    """Many clients with one key that do not care what they are told."""
    return await honest.run_for(seconds, url, NUM_GREEDY, num_tokens=NUM_TOKENS, seed=2, headers=_key(GREEDY))


def _judge(report, alone, beside, greedy, seconds):
    report.check("tenants: honest failures", "0", beside.summary(), beside.outcomes and not beside.failures())
    for name, quantity in (("ITL", honest.Tally.itl), ("TTFT", honest.Tally.ttft)):
        quiet, loud = quantity(alone, 0.99), quantity(beside, 0.99)
        times = figures.ratio(loud, quiet)
        report.timing(f"tenants: honest {name}", "p99 within 2 x",
                      f"{figures.ms(quiet)} → {figures.ms(loud)} ({times:.2f} x)", times <= 2.0)
    accepted = [o for o in greedy.outcomes if not o.failure]
    refused = [o for o in greedy.outcomes if o.failure and o.failure.startswith("429")]
    others = [o.failure for o in greedy.outcomes if o.failure and o not in refused]
    report.check("tenants: the greedy one's answers", "200 or 429",
                 f"{len(accepted)} accepted, {len(refused)} refused {figures.counted(others)}".strip(),
                 accepted and refused and not others)
    # A minute's worth may come at once.
    allowed = REQUESTS_PER_MINUTE * (1 + (seconds + 1) / 60)
    report.check("tenants: accepted of the greedy one", f"at most {allowed:.0f}", len(accepted),
                 len(accepted) <= allowed)
    # From the first token to shortly before the last: a busy client sees an end only after the next one's beginning.
    spans = [(o.first, o.moments()[-1] - BLUR_S) for o in accepted]
    most = max((sum(first <= moment < last for first, last in spans) for moment, _ in spans), default=0)
    report.timing("tenants: of it in flight at once", f"at most {IN_FLIGHT}", most, most <= IN_FLIGHT)
    untold = sum(o.retry_after_s is None for o in refused)
    report.check("tenants: refused without Retry-After", "0", f"{untold} of {len(refused)}", not untold)


async def _come_back(report, url):
    """Asks until it is refused, comes back when it was told to, and so on."""
    accepted, told = 0, []
    for _ in range(NUM_RETURNS):
        for _ in range(2 * REQUESTS_PER_MINUTE):
            outcome = await honest.ask(url, "git", 1, headers=_key(GREEDY))
            if outcome.retry_after_s is not None:
                break
        told.append(outcome.retry_after_s or 0.0)
        await asyncio.sleep(min(told[-1], 60.0))
        accepted += not (await honest.ask(url, "git", 1, headers=_key(GREEDY))).failure
    report.check("tenants: comes back after Retry-After", "is accepted most times",
                 f"{accepted} of {NUM_RETURNS}, told to wait {', '.join(map(figures.ms, told))}",
                 2 * accepted > NUM_RETURNS)


async def _status_after_removal(url):
    deadline = time.monotonic() + RELOAD_S
    while True:
        answer = await http1.exchange(url, "GET", "/v1/models", headers=_key(GREEDY))
        if answer.status == 401 or time.monotonic() > deadline:
            return answer.status
        await asyncio.sleep(0.2)
