"""Processes of the binary: started on free loopback ports, looked into, signalled, and ended."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import http1

#: How long a process may take to serve, or to end once it is told to (its drain time is 30 s).
PATIENCE_S = 60
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: What is zero where nobody is served.
GAUGES = (
    "fused_gateway_requests_in_flight",
    "fused_tokenizer_requests_in_flight",
    "fused_engine_running_sequences",
    "fused_engine_waiting_sequences",
    "fused_engine_slots_in_use",
    'fused_engine_kv_bytes{state="mapped"}',
    "fused_engine_kv_unused_bytes",
)


#: All processes there ever were, so that none outlives the script.
_STARTED = []


class StartError(Exception):
    """A process ended before it served; the message has its log."""


def free_port(host="127.0.0.1"):
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Process:
    """One process of the binary. Its log goes to a file, unless `stderr` says otherwise."""

    def __init__(self, fused, *arguments, stderr=None, environment=None, before=None):
        self.command = [str(fused), *map(str, arguments)]
        self.role = str(arguments[0])
        self.log_file = tempfile.NamedTemporaryFile(prefix=f"fused-{self.role}-", suffix=".log")
        self._stderr = stderr
        self._environment = {**os.environ, **(environment or {})}
        self._before = before
        self.urls = []
        self.child = None
        _STARTED.append(self)
        self._start()

    def _start(self):
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log_file if self._stderr is None else self._stderr,
            env=self._environment,
            preexec_fn=self._before,
        )
        self.urls = []
        is_up = threading.Event()
        threading.Thread(target=self._read_banner, args=(self.child.stdout, is_up), daemon=True).start()
        is_up.wait(PATIENCE_S)
        if not self.urls:
            self.kill()
            raise StartError(f"`{' '.join(self.command)}` did not start: {self.log()[-400:]}")

    def _read_banner(self, stdout, is_up):
        """The banner has a line for each address and ends with an empty one. The rest is read so that the process can
        go on printing."""
        urls = []
        for line in stdout:
            text = line.decode().strip()
            if text.startswith("listening on "):
                urls.append(text.split()[2])
            if not text and urls:
                self.urls = urls
                is_up.set()
        is_up.set()

    @property
    def url(self):
        return self.urls[0]

    @property
    def pid(self):
        return self.child.pid

    def is_running(self):
        return self.child.poll() is None

    def log(self):
        with open(self.log_file.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def rss_bytes(self):
        """Resident memory now, apart from mapped files and from KV pages, which fill their own bound as the prefix cache
        grows; 0 of a process that has ended."""
        try:
            with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
                _, resident, shared, *_ = statm.read().split()
                return (int(resident) - int(shared)) * PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def peak_rss_bytes(self):
        """The most resident memory it ever had."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

    def signal(self, number):
        self.child.send_signal(number)

    def restart(self):
        """Starts an ended process again with the same arguments."""
        self.child.wait(PATIENCE_S)
        self._start()

    def kill(self):
        self.child.kill()
        self.child.wait()

    def end(self):
        """Sends SIGTERM and waits; what went wrong, or None."""
        if not self.is_running():
            return f"{self.role} had ended with {self.child.returncode}: {self.log()[-300:]}"
        self.signal(signal.SIGTERM)
        try:
            status = self.child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.role} did not end {PATIENCE_S} s after SIGTERM"
        if status != 0:
            return f"{self.role} ended with {status} after SIGTERM"
        if "panicked" in self.log():
            return f"{self.role} panicked"
        return None


def kill_all():
    """Ends what an error has left running."""
    for process in _STARTED:
        if process.is_running():
            process.kill()
    _STARTED.clear()


@dataclass
class Stack:
    """Processes that answer together: where to ask them, and where their metrics are."""

    name: str
    http_url: str
    grpc_url: str
    metrics_urls: list[str]
    processes: list[Process] = field(default_factory=list)

    def rss_bytes(self):
        return sum(process.rss_bytes() for process in self.processes)

    def log(self):
        return "".join(process.log() for process in self.processes)

    async def metrics(self):
        """The sum over all processes of every sample, by its name with labels."""
        samples = {}
        for url in self.metrics_urls:
            for line in (await http1.get(url, "/metrics")).body.decode().splitlines():
                if line and not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    samples[name] = samples.get(name, 0.0) + float(value)
        return samples

    async def busy_gauges(self, patience_s=20.0):
        """Waits until all gauges are 0; those that are not by then, `name=value`. A gauge that is missing counts as
        one that is not 0, so that a new name does not go unnoticed."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                samples = await self.metrics()
                wrong = [f"{name}={samples.get(name, 'missing')}" for name in GAUGES if samples.get(name) != 0]
                kept = sum(samples.get(f'fused_engine_kv_bytes{{state="{state}"}}', 0) for state in ("parked", "free"))
                if not wrong and kept != samples.get('fused_engine_kv_bytes{state="total"}'):
                    wrong = ["KV pages are lost"]
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                wrong = [f"/metrics: {type(error).__name__}"]
            if not wrong or time.monotonic() > deadline:
                return wrong
            await asyncio.sleep(0.2)

    async def wait_ready(self):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = await http1.get(self.http_url, "/ready")
            if answer.status == 200:
                return
            if time.monotonic() > deadline:
                raise StartError(f"/ready is {answer.status}: {answer.body.decode()}")
            await asyncio.sleep(0.1)

    def end(self):
        """Ends all, the first to ask first; what went wrong."""
        return [fault for process in self.processes if (fault := process.end())]


def one_process(fused, *flags):
    """`fused serve`, with its gRPC port."""
    process = Process(fused, "serve", "--port", 0, "--grpc-port", 0, *flags)
    return Stack("one process", process.urls[0], process.urls[1], [process.url], [process])


def three_processes(fused, *flags):
    """Gateway, tokenizer and engine."""
    engine = Process(fused, "engine", "--grpc-port", 0, "--metrics-port", 0, *flags)
    tokenizer = Process(fused, "tokenizer", "--grpc-port", 0, "--metrics-port", 0, "--engine", engine.url)
    gateway = Process(fused, "gateway", "--port", 0, "--tokenizer", tokenizer.url)
    metrics = [gateway.url, tokenizer.urls[1], engine.urls[1]]
    return Stack("three processes", gateway.url, tokenizer.url, metrics, [gateway, tokenizer, engine])


@asynccontextmanager
async def running(start, fused, *flags, report=None):
    """A stack that is ready; ended afterwards, with a row in the report about how. After an error it is left to
    `kill_all`."""
    stack = await asyncio.to_thread(start, fused, *flags)
    await stack.wait_ready()
    yield stack
    faults = await asyncio.to_thread(stack.end)
    if report is not None:
        report.check(f"{stack.name}: ends on SIGTERM", "status 0, no panic", "; ".join(faults) or "so", not faults)
