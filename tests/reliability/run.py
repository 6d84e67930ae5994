"""Shows how `fused` holds up under attacks, faults and overload.

`python3 tests/reliability/run.py --fused PATH [--quick] [--out FILE] [scenario ...]` starts and ends all processes by
itself, prints a table row for each check, and exits with 1 where one fails. README.md here lists the scenarios."""

import argparse
import asyncio
import hashlib
import importlib
import logging
import os
import resource
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from report import Report
from servers import StartError, kill_all

HERE = Path(__file__).resolve().parent
NAMES = ("singles", "attacks", "chaos", "pressure", "tenants", "overload", "soak")
#: Python in the environment that has `h2`; set once this script runs in it.
INSIDE = "FUSED_RELIABILITY_VENV"


@dataclass
class Context:
    """What every scenario is given."""

    fused: Path
    quick: bool
    soak_minutes: float
    report: Report


def main():
    arguments = _parse()
    if INSIDE not in os.environ:
        _enter_environment()
    # Clients and servers hold thousands of connections.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    # Foreign settings would change what is measured.
    for name in [name for name in os.environ if name.startswith("FUSED_")]:
        del os.environ[name]
    sys.exit(asyncio.run(_run(arguments)))


def _parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fused", required=True, type=Path, help="the binary")
    parser.add_argument("--quick", action="store_true", help="small loads, under 90 s in all; times are not judged")
    parser.add_argument("--out", type=Path, help="write the table to this file, too (Markdown)")
    parser.add_argument("--soak-minutes", type=float, default=30.0, help="length of `soak` (default 30)")
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(NAMES)}; default: all")
    arguments = parser.parse_args()
    for name in arguments.scenarios:
        if name not in NAMES:
            parser.error(f"no scenario `{name}`: there are {', '.join(NAMES)}")
    if not os.access(arguments.fused, os.X_OK):
        parser.error(f"--fused {arguments.fused}: no program")
    return arguments


def _enter_environment():
    """Runs this script again in a virtual environment that has the packages it needs."""
    requirements = HERE / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    venv = cache / "fused" / f"reliability-{digest}"
    python = venv / "bin" / "python"
    if not (venv / "installed").exists():
        install = [[sys.executable, "-m", "venv", venv],
                   [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]]
        for command in install:
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit(f"tests/reliability: cannot make a virtual environment with {requirements}")
        (venv / "installed").touch()
    os.execve(python, [python, *sys.argv], {**os.environ, INSIDE: "1"})


async def _run(arguments):
    # asyncio warns of each write to a connection that the server has closed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)

    report = Report(judges_time=not arguments.quick)
    context = Context(arguments.fused.resolve(), arguments.quick, arguments.soak_minutes, report)
    names = arguments.scenarios or NAMES
    for name in names:
        began = time.monotonic()
        try:
            await importlib.import_module(f"scenarios.{name}").run(context)
        except Exception as error:
            # The other scenarios say something all the same.
            if not isinstance(error, StartError):
                traceback.print_exc()
            report.check(f"{name}: runs to its end", "so", f"{type(error).__name__}: {error}", False)
        finally:
            kill_all()
        report.note(f"{name}: took", f"{time.monotonic() - began:.0f} s")
    if arguments.out:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        version = subprocess.run([context.fused, "--version"], capture_output=True, text=True).stdout.strip()
        title = (f"# Reliability: {', '.join(names)}\n\n`{version}`, {when} UTC, {os.cpu_count()} cores"
                 f"{', quick' if arguments.quick else ''}.")
        arguments.out.write_text(report.markdown(title), encoding="utf-8")
    failed = report.failed()
    print(f"\n{len(failed)} of {len(report.rows)} rows failed" if failed else f"\nall of {len(report.rows)} rows hold")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
