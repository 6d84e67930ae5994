"""One fault each, on a server of its own: the numbers R... are those of the attacks' table, and name each row."""

import asyncio
import json
import os
import random
import re
import resource
import signal
import subprocess
import tomllib
from pathlib import Path

import figures
import honest
import http1
from attackers import BODY_BYTES, Attack, launch, long_text, stream_resets
from servers import PATIENCE_S, Process, one_process, running, three_processes

CHART_VALUES = Path(__file__).resolve().parents[3] / "deploy" / "helm" / "fused" / "values.yaml"


async def run(context):
    """All of them."""
    for single in (large_bodies, own_prompt, small_beside_large, unread_log, huge_settings, log_lines):
        await single(context)


async def large_bodies(context):
    """R5: many of the largest bodies at once, with and without token strings, within the memory that the chart gives
    each role. A refusal is an answer; what counts is that both processes stay under their limits."""
    limits = _chart_limits()
    text = long_text(random.Random(1), BODY_BYTES - 128)
    for num, has_strings in [(8, False)] if context.quick else [(30, False), (60, False), (30, True)]:
        body = json.dumps({"prompt": text, "return_token_strs": has_strings}).encode()
        what = f"R5, {num} bodies of 4 MiB to /tokenize{', with token strings' if has_strings else ''}"
        async with running(three_processes, context.fused, report=context.report) as stack:
            got = await asyncio.gather(*(_status(stack.http_url, "/tokenize", body) for _ in range(num)))
            for process in stack.processes[:2]:
                peak, limit = process.peak_rss_bytes(), limits[process.role]
                context.report.check(f"{what}: the {process.role}'s memory",
                                     f"peak under the chart's {figures.mib(limit)}", figures.mib(peak), peak < limit)
            # An answer may be too large for a message; that is not the client's to try again.
            wrong = set(got) - {"200", "429 queue_full", "413 payload_too_large"}
            context.report.check(f"{what}: answers", "200, 413 or 429", figures.counted(got), not wrong)


async def own_prompt(context):
    """R6: one request of 128 long prompts on an idle server is accepted: nobody is refused for his own prompts."""
    rng = random.Random(2)
    prompts = [[rng.randrange(300, 3000) for _ in range(900)] for _ in range(128)]
    async with running(one_process, context.fused, report=context.report) as stack:
        if context.quick:
            # Accepted is enough; the answer is not waited for.
            status = await _first_status(stack.http_url, {"prompt": prompts, "max_tokens": 1, "stream": True})
        else:
            status = await _status(stack.http_url, "/v1/completions", {"prompt": prompts, "max_tokens": 1}, 300.0)
        context.report.check("R6, 128 prompts of 900 tokens on an idle server", "200", status, status == "200")
        busy = await stack.busy_gauges()
        context.report.check("R6: gauges afterwards", "all 0", ", ".join(busy) or "all 0", not busy)


async def small_beside_large(context):
    """R12: small requests, one after the other, beside clients that have 4 MiB tokenized again and again."""
    seconds = 2.0 if context.quick else 15.0
    async with running(one_process, context.fused, report=context.report) as stack:
        async def small():
            return await honest.run_for(seconds, stack.http_url, 1, num_tokens=1)

        alone = await small()
        beside, seen = await asyncio.gather(
            small(), launch("tokenize_loops", stack, seconds, 0.25 if context.quick else 1.0))
        context.report.check("R12, small requests beside 4 MiB of /tokenize from 16 clients: failures", "0",
                             beside.summary(), beside.outcomes and not beside.failures())
        half, most = beside.ttft(0.5), beside.ttft(0.99)
        context.report.timing("R12: their TTFT", "p50 within 50 ms",
                              f"p50 {figures.ms(alone.ttft(0.5))} → {figures.ms(half)}, p99 "
                              f"{figures.ms(alone.ttft(0.99))} → {figures.ms(most)}; /tokenize: {seen}",
                              half is not None and half <= 0.05)


async def unread_log(context):
    """R16: whoever should read standard error does not. The server answers all the same."""
    reading, writing = os.pipe()
    process = await asyncio.to_thread(Process, context.fused, "serve", "--port", 0, "--log-filter", "debug",
                                      stderr=writing)
    _fill(writing)
    os.close(writing)
    try:
        got = await asyncio.gather(*(_status(process.url, "/v1/completions", {"max_tokens": "x"}, 5.0)
                                     for _ in range(100)))
        health = await _get_status(process.url, "/health")
        context.report.check("R16, a log that nobody reads: /health", "200", health, health == "200")
        answer = await honest.ask(process.url, "git", 5, timeout_s=20.0)
        context.report.check("R16: a completion", "an answer", answer.failure or "an answer", not answer.failure)
        context.report.check("R16: requests meanwhile", "all 400", figures.counted(got),
                             set(got) == {"400 invalid_argument"})
        process.signal(signal.SIGTERM)
        ended = await _ended(process.child)
        context.report.check("R16: ends on SIGTERM", "status 0", ended, ended == "status 0")
    finally:
        process.kill()
        os.close(reading)


def _fill(pipe):
    """Writes to a pipe until it takes no more. Its other users go on waiting for room: only this way in does not."""
    way_in = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(way_in, b"\n" * 512)
    except BlockingIOError:
        os.close(way_in)


async def huge_settings(context):
    """R17: each number of the settings as 2^62, threads and the like as 100,000 too. The server says in a sentence what
    is wrong, naming the setting, or it serves; it neither panics nor hangs."""
    chosen = _numbers(context.fused)
    values = ["4611686018427387904"]
    if context.quick:
        chosen = [name for name in chosen if name in ("stream_buffer", "max_waiting_requests", "tokenizer_threads")]
    else:
        values.append("100000")
    faults, num_served = [], 0
    for name in chosen:
        for value in values:
            fault, served = await _start_with(context.fused, name, value)
            num_served += served
            if fault:
                faults.append(f"{name}={value}: {fault}")
    num = len(chosen) * len(values)
    context.report.check(f"R17, {num} huge settings", "refused with a sentence, or served",
                         "; ".join(faults) or f"{num - num_served} refused, {num_served} served", chosen and not faults)


async def log_lines(context):
    """R21: log lines a second with 256 descriptors and 400 clients, and under rapid resets."""
    seconds = 2.0 if context.quick else 10.0

    def few_descriptors():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    process = await asyncio.to_thread(Process, context.fused, "serve", "--port", 0, "--grpc-port", 0,
                                      before=few_descriptors)
    writers = []
    try:
        for _ in range(400):
            _, writer = await http1.connect(process.url)
            writers.append(writer)
        await asyncio.sleep(seconds)
        _check_lines(context, "256 descriptors and 400 connections", process, seconds)
        for writer in writers:
            writer.transport.abort()
        answer = await honest.ask(process.url, "git", 5, timeout_s=20.0)
        context.report.check("R21: a completion when they are gone", "an answer", answer.failure or "an answer",
                             not answer.failure)
    finally:
        process.kill()
    async with running(one_process, context.fused, report=context.report) as stack:
        attack = Attack(stack.http_url, stack.grpc_url, seconds, 1.0)
        attack.round_s = 0.0
        seen = await stream_resets(attack)
        _check_lines(context, f"rapid resets ({seen['reset']})", stack.processes[0], seconds)


def _check_lines(context, what, process, seconds):
    warnings = len(re.findall(r"\b(?:WARN|ERROR)\b", process.log())) / seconds
    context.report.check(f"R21, {what}: warnings", "at most 10 a second", f"{warnings:.1f} a second", warnings <= 10)


def _chart_limits():
    """The chart's memory limits of gateway and tokenizer, bytes."""
    limits, role, in_limits = {}, None, False
    for line in CHART_VALUES.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):", line):
            role = match[1]
        elif match := re.match(r"    (\w+):", line):
            in_limits = match[1] == "limits"
        elif in_limits and (match := re.match(r"      memory: (\d+)(Mi|Gi)", line)):
            limits[role] = int(match[1]) << {"Mi": 20, "Gi": 30}[match[2]]
    return limits


async def _status(url, path, body, timeout=120.0):
    """The status of a POST with its error's code, or why there is none."""
    try:
        answer = await http1.post(url, path, body, timeout)
    except (OSError, EOFError, TimeoutError) as error:
        return type(error).__name__
    return str(answer.status) if answer.status == 200 else f"{answer.status} {answer.error_code()}"


async def _get_status(url, path):
    try:
        return str((await http1.get(url, path, 5.0)).status)
    except (OSError, EOFError, TimeoutError) as error:
        return type(error).__name__


async def _first_status(url, body):
    """The status of an answer that is not waited for."""
    data = json.dumps(body).encode()
    reader, writer = await http1.connect(url)
    try:
        writer.write(http1.head(url, "POST", "/v1/completions", len(data)) + data)
        line = await asyncio.wait_for(reader.readline(), 30.0)
        return line.split()[1].decode()
    except (OSError, TimeoutError, IndexError) as error:
        return type(error).__name__
    finally:
        writer.transport.abort()


def _numbers(fused):
    """Names of all settings that are numbers; ports are 16 bits anyway."""
    printed = subprocess.run([fused, "serve", "--print-settings"], capture_output=True, text=True, check=True).stdout
    numbers = [name for name, value in tomllib.loads(printed).items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)]
    # Those without a default stand in comments.
    unset = re.findall(r"^# (\w+(?:_bytes|_len|_budget|_ms|_size_high|_size_low|_tokens|_stages)) is not set", printed,
                       re.MULTILINE)
    return [name for name in numbers + unset if not name.endswith("port")]


async def _start_with(fused, name, value):
    """What went wrong with a start under a setting, if anything, and whether it served."""
    flag = "--" + name.replace("_", "-")
    child = await asyncio.create_subprocess_exec(
        fused, "serve", "--port", "0", flag, value, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    log = asyncio.create_task(child.stderr.read())
    try:
        async with asyncio.timeout(PATIENCE_S / 2):
            url = None
            while line := (await child.stdout.readline()).decode().strip():
                if line.startswith("listening on "):
                    url = line.split()[2]
            if url is None:
                status = await child.wait()
                said = (await log).decode(errors="replace")
                if status < 0 or "panicked" in said:
                    return f"ended by signal {-status}" if status < 0 else "panicked", False
                return (None, False) if name in said or flag in said else (f"not named: {said[-150:]!r}", False)
            answer = await honest.ask(url, "git", 3, timeout_s=10.0)
            return (f"served, but: {answer.failure}" if answer.failure else None), True
    except TimeoutError:
        return "hangs", False
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        log.cancel()


async def _ended(child):
    try:
        return f"status {await asyncio.to_thread(child.wait, 45)}"
    except subprocess.TimeoutExpired:
        return "still runs after 45 s"
