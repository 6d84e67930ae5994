"""Hostile clients, each a process of its own so that it does not slow down the clock of the honest ones:
`attackers.py NAME HTTP_URL GRPC_URL SECONDS SCALE` attacks for so long and prints as JSON what it did and saw.

SCALE 1 is the attack as issue and table name it; a quick run takes a part of that. Every attack is bounded in number
and time."""

import asyncio
import json
import logging
import random
import sys
import time

import http1
import text_api
from honest import WORDS, prompt
from http2 import Closed, Connection

JSON = "application/json"
ABORTS_A_ROUND = 200
RESETS_A_ROUND = 100
ZERO_WINDOW_CONNECTIONS = 6
ZERO_WINDOW_STREAMS = 200
HALF_BODIES = 32
HALF_MESSAGES = 150
HALF_MESSAGE_BYTES = 15 << 20
SILENT = 2000
ANNOUNCED = 64
BODY_BYTES = 4 << 20
TOKENIZERS = 16
#: Rounds begin so far apart.
ROUND_S = 1.0
#: How long an attacker may take beyond its time, with what it has begun.
OVERTIME_S = 45.0


class Attack:
    """Where, how long, and how much of it."""

    def __init__(self, http_url, grpc_url, seconds, scale):
        self.http_url, self.grpc_url = http_url, grpc_url
        self.scale = scale
        self.round_s = ROUND_S
        self.ends = time.monotonic() + seconds
        self.rng = random.Random(7)

    def part(self, number):
        return max(int(number * self.scale), 1)

    def left_s(self):
        return max(self.ends - time.monotonic(), 0.0)

    def completion(self, num_tokens):
        body = {"prompt": prompt(self.rng), "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
        return json.dumps(body).encode()

    async def rounds(self, attack_once):
        """Runs rounds until the time is over; how many."""
        num = 0
        while self.left_s() > 0:
            began = time.monotonic()
            await attack_once()
            num += 1
            await asyncio.sleep(min(max(self.round_s - (time.monotonic() - began), 0.0), self.left_s()))
        return num


async def launch(name, stack, seconds, scale):
    """Runs an attack on a stack in a process of its own; what it reports."""
    process = await asyncio.create_subprocess_exec(
        "nice", "-n", "10", sys.executable, __file__, name, stack.http_url, stack.grpc_url, str(seconds), str(scale),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        output, log = await asyncio.wait_for(process.communicate(), seconds + OVERTIME_S)
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return "did not come to an end"
        raise
    if process.returncode:
        raise RuntimeError(f"the attacker {name} failed: {log.decode()[-1500:]}")
    return json.loads(output)


async def instant_aborts(attack):
    """Each round so many clients ask, and hang up 10 ms later."""
    async def one():
        _, writer = await http1.connect(attack.http_url)
        body = attack.completion(200)
        writer.write(http1.head(attack.http_url, "POST", "/v1/completions", len(body)) + body)
        await asyncio.sleep(0.01)
        writer.transport.abort()

    num = attack.part(ABORTS_A_ROUND)
    asked = await attack.rounds(lambda: gather(one() for _ in range(num)))
    return {"aborted": asked * num}


async def stream_resets(attack):
    """Each round one connection to either port opens so many streams and resets them 3 ms later."""
    num = attack.part(RESETS_A_ROUND)
    counts = {"reset": 0, "connections": 0}

    async def one(url, path, content_type, body):
        connection = await Connection.open(url)
        counts["connections"] += 1
        try:
            for _ in range(num):
                stream = connection.request(path, content_type)
                await connection.send(stream, body)
                asyncio.get_running_loop().call_later(0.003, connection.reset, stream)
                counts["reset"] += 1
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)
        except Closed:
            # A server may close a connection that does this.
            pass
        finally:
            connection.abort()

    grpc = text_api.generate(prompt(attack.rng), 200)
    await attack.rounds(lambda: gather([
        one(attack.http_url, "/v1/completions", JSON, attack.completion(200)),
        one(attack.grpc_url, text_api.GENERATE, text_api.CONTENT_TYPE, grpc),
    ]))
    return counts


async def zero_windows(attack):
    """Requests of one token whose clients never let a body through: over HTTP/2 to the gateway, and over gRPC."""
    num = attack.part(ZERO_WINDOW_STREAMS)
    num_connections = attack.part(ZERO_WINDOW_CONNECTIONS)
    counts = {"streams": 0, "refused": 0, "still_open": 0}

    async def one(url, path, content_type, body):
        connection = await Connection.open(url, window=0)
        try:
            opened = []
            for _ in range(min(num, connection.max_streams)):
                opened.append(connection.request(path, content_type))
                await connection.send(opened[-1], body)
                counts["streams"] += 1
            while attack.left_s() > 0 and not connection.is_closed:
                await asyncio.sleep(0.2)
            counts["refused"] += sum(status != 200 for status in connection.statuses.values())
            if not connection.is_closed:
                counts["still_open"] += sum(s not in connection.ended | connection.resets for s in opened)
        except Closed:
            pass
        finally:
            connection.abort()

    grpc = text_api.generate(prompt(attack.rng), 1)
    http = [one(attack.http_url, "/v1/completions", JSON, attack.completion(1)) for _ in range(num_connections)]
    await gather([*http, one(attack.grpc_url, text_api.GENERATE, text_api.CONTENT_TYPE, grpc)])
    return counts


async def half_messages(attack):
    """Bodies over HTTP of which half comes, and gRPC messages whose last bytes never come."""
    counts = {"http": 0, "http_still_open": 0, "grpc": 0, "grpc_mib": 0, "grpc_still_open": 0}

    async def http():
        reader, writer = await http1.connect(attack.http_url)
        writer.write(http1.head(attack.http_url, "POST", "/v1/completions", BODY_BYTES))
        writer.write(b'{"prompt": "' + b"a" * (BODY_BYTES // 2))
        counts["http"] += 1
        if not await is_answered(reader, attack.left_s()):
            counts["http_still_open"] += 1
        writer.transport.abort()

    async def grpc():
        connection = await Connection.open(attack.grpc_url)
        message = text_api.framed(b"\x0a" * (HALF_MESSAGE_BYTES - 16), HALF_MESSAGE_BYTES)

        async def send():
            stream = connection.request(text_api.GENERATE, text_api.CONTENT_TYPE)
            counts["grpc"] += 1
            await connection.send(stream, message, end=False)
            await connection.wait(stream)

        sending = [asyncio.create_task(send()) for _ in range(attack.part(HALF_MESSAGES))]
        _, waiting = await asyncio.wait(sending, timeout=attack.left_s())
        counts["grpc_still_open"] = len(waiting)
        counts["grpc_mib"] = connection.sent_bytes >> 20
        for task in sending:
            task.cancel()
        connection.abort()

    await gather([*(http() for _ in range(attack.part(HALF_BODIES))), grpc()])
    return counts


async def silent_connections(attack):
    """Connections that say nothing, to both ports; every second one of gRPC's says hello first, as HTTP/2 has it."""
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    num = attack.part(SILENT)
    counts = {"opened": 0, "refused": 0, "still_open": 0}

    async def one(url, idx, greets):
        # Not all in one instant: a listener's backlog is short.
        await asyncio.sleep(idx / num * min(2.0, attack.left_s() / 4))
        try:
            reader, writer = await http1.connect(url)
        except OSError:
            counts["refused"] += 1
            return
        counts["opened"] += 1
        if greets:
            writer.write(hello)
        try:
            async with asyncio.timeout(attack.left_s()):
                # Pings are not answered.
                while await reader.read(1 << 12):
                    pass
        except TimeoutError:
            counts["still_open"] += 1
        except OSError:
            pass
        writer.transport.abort()

    http = [one(attack.http_url, idx, False) for idx in range(num)]
    await gather([*http, *(one(attack.grpc_url, idx, idx % 2 == 1) for idx in range(num))])
    return counts


async def announced_bodies(attack):
    """Sockets that announce a body and send one byte of it: the largest bodies first, then smaller and smallest ones,
    for which there is room when there is none for the larger."""
    counts = {"opened": 0, "still_open": 0}

    async def one(num_bytes, after_s):
        await asyncio.sleep(after_s)
        reader, writer = await http1.connect(attack.http_url)
        writer.write(http1.head(attack.http_url, "POST", "/v1/completions", num_bytes) + b"{")
        counts["opened"] += 1
        if not await is_answered(reader, attack.left_s()):
            counts["still_open"] += 1
        writer.transport.abort()

    sizes = enumerate((BODY_BYTES, 64 << 10, 1 << 10))
    await gather(one(size, 0.2 * idx) for idx, size in sizes for _ in range(attack.part(ANNOUNCED)))
    return counts


async def tokenize_loops(attack):
    """Clients that have the largest body tokenized again and again."""
    statuses = {}
    body = json.dumps({"prompt": long_text(attack.rng, int((BODY_BYTES - 64) * attack.scale))}).encode()

    async def one():
        while attack.left_s() > 0:
            try:
                answer = await http1.post(attack.http_url, "/tokenize", body, timeout=max(attack.left_s(), 0.1))
                key = str(answer.status)
                if answer.status != 200:
                    await asyncio.sleep(0.1)
            except TimeoutError:
                key = "unfinished"
            except (OSError, asyncio.IncompleteReadError) as error:
                key = type(error).__name__
                await asyncio.sleep(0.1)
            statuses[key] = statuses.get(key, 0) + 1

    await gather(one() for _ in range(attack.part(TOKENIZERS)))
    return statuses


def long_text(rng, num_bytes):
    """So many bytes of words; the same thousand of them over and over."""
    words = " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(1000)) + " "
    return (words * (num_bytes // len(words) + 1))[:num_bytes]


async def gather(coroutines):
    """Runs all; what fails because the server closed a connection is no failure of an attack."""
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, (OSError, Closed, EOFError)):
            raise result


async def is_answered(reader, timeout_s):
    """Whether the server answers or hangs up within the time."""
    try:
        await asyncio.wait_for(reader.read(1), timeout_s)
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


ATTACKS = {
    attack.__name__: attack
    for attack in (instant_aborts, stream_resets, zero_windows, half_messages, silent_connections, announced_bodies,
                   tokenize_loops)
}

if __name__ == "__main__":
    # asyncio warns of each write to a connection that the server has closed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    name, http_url, grpc_url, seconds, scale = sys.argv[1:]
    print(json.dumps(asyncio.run(ATTACKS[name](Attack(http_url, grpc_url, float(seconds), float(scale))))))
