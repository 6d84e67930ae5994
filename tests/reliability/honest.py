"""Honest clients: they ask for a streamed completion, read it to its end, check it, and note when what came."""

import asyncio
import itertools
import json
import random
import time
from dataclasses import dataclass, field

import figures
import http1

#: Words of the demo model's domain, from which prompts are made.
WORDS = "git rebase tar list files archive commit branch print delete show remote user group mount disk image".split()
#: What a client does after a failure, so that failures do not become a load of their own.
PAUSE_AFTER_FAILURE_S = 0.1


def prompt(rng, num_words=20):
    """A prompt that is unlike any other, so that no cached prefix answers for it."""
    return "<|endoftext|># " + " ".join(rng.choice(WORDS) for _ in range(num_words)) + "\n\n>"


@dataclass
class Outcome:
    """One request: when it began, got its first token and ended (seconds of the monotonic clock), the times between
    its tokens, and why it failed, if it did."""

    began: float
    first: float | None = None
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    failure: str | None = None
    retry_after_s: float | None = None

    def ttft(self):
        return self.first - self.began

    def moments(self):
        """When its tokens came."""
        if self.first is None:
            return []
        return list(itertools.accumulate(self.gaps, initial=self.first))


class _Reader:
    """Takes the bytes of an event stream and notes when its tokens came."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.rest = b""
        self.events = []
        self._last = None

    def take(self, data):
        now = time.monotonic()
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            # Comments keep the connection alive.
            if not event.startswith(b"data: "):
                continue
            if b'"finish_reason":null' in event:
                if self._last is None:
                    self.outcome.first = now
                else:
                    self.outcome.gaps.append(now - self._last)
                self._last = now
            else:
                self.events.append(event[len(b"data: "):])

    def fault(self, num_tokens):
        """What is wrong with the stream as it ended."""
        for event in self.events:
            if event.startswith(b'{"error"'):
                return "in-stream " + str(json.loads(event)["error"].get("code"))
        if self.events[-1:] != [b"[DONE]"]:
            return "cut off"
        bodies = [json.loads(event) for event in self.events[:-1]]
        reasons = [choice["finish_reason"] for body in bodies for choice in body["choices"]]
        tokens = [body["usage"]["completion_tokens"] for body in bodies if body.get("usage")]
        if reasons != ["length"] or tokens != [num_tokens]:
            return f"wrong answer: {reasons}, {tokens} tokens"
        return None


async def ask(url, text, num_tokens, timeout_s=90.0, headers=None, **fields):
    """One streamed completion of exactly so many tokens. `text` may be token ids; `fields` go into the body."""
    outcome = Outcome(time.monotonic())
    reader = _Reader(outcome)
    body = {"prompt": text, "max_tokens": num_tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, **fields}
    sent = http1.exchange(url, "POST", "/v1/completions", json.dumps(body).encode(), headers, reader.take)
    try:
        answer = await asyncio.wait_for(sent, timeout_s)
        if answer.status == 200:
            outcome.failure = reader.fault(num_tokens)
        else:
            outcome.failure = f"{answer.status} {answer.error_code()}".strip()
            outcome.retry_after_s = retry_after(answer.headers)
    except asyncio.TimeoutError:
        outcome.failure = f"time-out of {timeout_s:.0f} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        begun = "cut off" if outcome.first else "no answer"
        outcome.failure = f"{begun} ({type(error).__name__})"
    outcome.ended = time.monotonic()
    return outcome


def retry_after(headers):
    """When a refused client is asked to come back, seconds; None where nobody says."""
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000
    return float(headers["retry-after"]) if "retry-after" in headers else None


@dataclass
class Tally:
    """What became of many requests."""

    outcomes: list[Outcome] = field(default_factory=list)

    def failures(self):
        return [outcome.failure for outcome in self.outcomes if outcome.failure]

    def ttft(self, q):
        return figures.quantile((o.ttft() for o in self.outcomes if o.first and not o.failure), q)

    def itl(self, q):
        return figures.quantile((gap for o in self.outcomes for gap in o.gaps), q)

    def summary(self):
        failures = self.failures()
        told = f" ({figures.counted(failures)})" if failures else ""
        return f"{len(failures)} of {len(self.outcomes)}{told}"


class Clients:
    """So many clients that each ask again as soon as they are answered, between `async with` and its end; those that
    run then are waited for."""

    def __init__(self, url, num_clients, num_tokens=48, seed=1, timeout_s=90.0, **fields):
        self.tally = Tally()
        self._arguments = (url, num_tokens, timeout_s, fields)
        self._num_clients = num_clients
        self._seed = seed
        self._goes_on = True
        self._tasks = []

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._loop(idx)) for idx in range(self._num_clients)]
        return self

    async def __aexit__(self, *_):
        self._goes_on = False
        await asyncio.gather(*self._tasks)

    async def _loop(self, idx):
        url, num_tokens, timeout_s, fields = self._arguments
        rng = random.Random(f"{self._seed}/{idx}")
        while self._goes_on:
            outcome = await ask(url, prompt(rng), num_tokens, timeout_s, **fields)
            self.tally.outcomes.append(outcome)
            if outcome.failure:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)


async def run_for(seconds, url, num_clients, **arguments):
    """What becomes of the requests of so many clients in so many seconds."""
    async with Clients(url, num_clients, **arguments) as clients:
        await asyncio.sleep(seconds)
    return clients.tally
