"""Commands side by side until a deadline, for the benchmarks that train many small models, and the tables of those.

A small model leaves most of a GPU idle, so several processes share it.
"""

import csv
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

CLI = (sys.executable, "-c", "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main())")
"""`mamba-seq`, where it is not installed, too."""
GRACE = 12.0
"""Seconds that a command has to end after SIGTERM."""


class Job(NamedTuple):
    """A command, and the name of its log."""

    name: str
    command: Sequence[str]


def run_jobs(
    jobs: Sequence[Job], logs: Path, deadline: float, at_once: int, devices: Sequence[str] = ()
) -> dict[str, int | None]:
    """Run commands in their order, some at a time, and end those that still run at the deadline.

    Args:
        jobs: the commands; their names are those of the logs.
        logs: folder of NAME.log, which is appended to.
        deadline: seconds of `time.monotonic` at which all ends.
        at_once: commands on each device at a time.
        devices: numbers of GPUs that commands are dealt out to; without any, the environment decides.

    Returns:
        The exit status of each command; None for one that was ended or never begun.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(jobs)
    status: dict[str, int | None] = {job.name: None for job in jobs}
    lock = threading.Lock()

    def work(device: str | None) -> None:
        variables = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        while time.monotonic() < deadline:
            with lock:
                if not waiting:
                    return
                job = waiting.pop(0)
            started = time.monotonic()
            status[job.name] = run_command(job.command, logs / f"{job.name}.log", deadline, variables)
            said = "ended at the deadline" if status[job.name] is None else f"exit status {status[job.name]}"
            print(f"{job.name}: {said} after {time.monotonic() - started:.0f} s", flush=True)

    each = [device for device in (devices or [None]) for _ in range(at_once)]  # type: ignore[list-item]
    threads = [threading.Thread(target=work, args=(device,)) for device in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return status


def run_command(
    command: Sequence[str], log: Path, deadline: float = math.inf, variables: dict[str, str] | None = None
) -> int | None:
    """Run a command in a process group of its own, so that what it starts ends with it.

    Args:
        command: what to run.
        log: what it says is appended to this file.
        deadline: seconds of `time.monotonic` at which it is ended, by SIGTERM and after `GRACE` by SIGKILL.
        variables: of its environment, besides those of this process.

    Returns:
        Its exit status; None for one that was ended.
    """
    # a command that is killed has said what it said
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (variables or {})
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        status = None
        try:
            left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            status = process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            if status is None:  # whoever of the group is left, after Ctrl-C too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
    return status


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of one form as CSV; none where there are no rows."""
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n", restval="")
            table.writeheader()
            table.writerows(rows)
