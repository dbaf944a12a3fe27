"""How far a batch is, from files alone: what is done, what rests on older inputs, what runs, what failed and why.

A result is done while a file beside it names what it was made from (code, notebook, settings, data root) and what it
was. That file is what Snakemake knows as the output of a job, and removes when the job fails: the record stays, and
counts as older until it is made again. Everything is compared by content, so a fresh clone or a touched file is no
reason to run.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import pandas as pd

from adlib import profiles, source_files
from adlib.methods import METHODS
from adlib.paths import atomic_path, results_dir
from adlib_book import costs
from adlib_book.cells import notebook_path

DONE = ".done"
JOB_FILE = "job.json"
STATES = ("done", "older", "running", "failed", "to do")
BEAT = 20  # seconds between two signs of life of a running job
SILENT = 6 * BEAT  # from when on a job without one counts as stopped: clocks and file servers of a cluster differ


# -- what a result was made from --------------------------------------------------------------------------------------


def of_run(job, folder=None) -> str:
    """Return the content of the done-file of a run: digests of what its record is made from, and of the record."""
    return f"{digest(_method_inputs(job.profile, job.method), repr(job))} {record_digest(folder or run_folder(job))}"


def run_folder(job) -> Path:
    """Return the folder of a run."""
    return results_dir() / "runs" / job.folder


def done_file(task) -> Path:
    """Return the done-file of a job, or of an executed notebook (its path)."""
    return (run_folder(task) / DONE) if not isinstance(task, str) else Path(task).with_name(f".{Path(task).stem}{DONE}")


def is_done(job) -> bool:
    """Tell whether a run's record is there and of the inputs of today."""
    digest = content(job)
    return digest != "" and digest == of_run(job) and not digest.endswith(" none")


def content(task) -> str:
    """Return what the done-file of a job or notebook holds; "" where there is none."""
    with contextlib.suppress(OSError):
        return done_file(task).read_text()
    return ""


def write_done(files, content: str) -> None:
    """Write a done-file: beside the result, and where the batch asks for it, which may be a copy that travels."""
    for file in {Path(file).absolute() for file in files}:
        with atomic_path(file) as temporary:
            temporary.write_text(content)


@functools.cache
def _method_inputs(profile: str, method: str) -> str:
    settings = json.dumps(profiles.load(profile)["methods"].get(method), sort_keys=True)
    return digest(*source_files.of_method(method), notebook_path(METHODS[method].notebook), settings)


def record_digest(folder: Path) -> str:
    try:
        return hashlib.blake2b((folder / "record.json").read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return "none"


def forget(tasks) -> None:
    """Remove the done-files of tasks that are to be done again."""
    for task in tasks:
        done_file(task).unlink(missing_ok=True)


def digest(*parts) -> str:
    """Digest texts, and files by their content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(f"{len(content)}\0".encode() + content)
    return digest.hexdigest()


# -- a job that runs --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reported(folder):
    """Say in the run's folder, in `job.json`, that a job runs there, with a beat; and after a failure, why it failed.

    Where even that could not be written (a killed process, a machine that went down), the beat stops.
    """
    file, ended = Path(folder) / JOB_FILE, threading.Event()
    state = {"state": "running", "host": socket.gethostname(), "reason": None}
    state |= {"since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}

    def beat():
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(file)

    _write_state(file, state)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        reason = "stopped: cancelled, or at its limit of time" if stopped else f"{error or type(error).__name__}"
        _write_state(file, state | {"state": "failed", "reason": " ".join(reason.split())})
        raise
    else:
        file.unlink(missing_ok=True)
    finally:
        ended.set()
        thread.join()


def _write_state(file: Path, state: dict) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(state) + "\n")


def _job_state(folder: Path) -> tuple[str, str] | None:
    """Return what `job.json` says: ("running" or "failed", why); None where there is none."""
    file = folder / JOB_FILE
    try:
        state, silence = json.loads(file.read_text()), time.time() - file.stat().st_mtime
    except (OSError, json.JSONDecodeError):
        return None
    if state["state"] == "failed":
        return "failed", state["reason"]
    if silence > SILENT:
        return "failed", f"killed on {state['host']} {duration(silence)} ago: out of memory, or at its limit of time?"
    return "running", f"on {state['host']} since {state['since']}"


def duration(seconds: float) -> str:
    """Say a time in words."""
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


# -- the batch as a table ---------------------------------------------------------------------------------------------


def states(jobs) -> pd.DataFrame:
    """Return one row per job: method, folder, state (one of `STATES`), reason, and hours spent and left.

    "older" is a record whose inputs have changed since, or whose rerun failed: it stays until there is a better one.
    """
    rows = []
    for job in jobs:
        folder, cost = run_folder(job), costs.read(job.profile, job.method)
        job_state = _job_state(folder)
        there = (folder / "record.json").is_file()
        if job_state and job_state[0] == "running":
            state = "running"
        elif is_done(job):
            state, job_state = "done", None
        else:
            state = "failed" if job_state else "older" if there else "to do"
        reason = job_state[1] if job_state else ""
        if state == "failed" and there:
            reason += " (an older record is kept)"
        row = {"method": job.method, "folder": job.folder, "state": state, "reason": reason}
        rows.append(row | {"spent": _hours(folder) if there else 0.0, "left": (state != "done") * cost.minutes / 60})
    return pd.DataFrame(rows, columns=["method", "folder", "state", "reason", "spent", "left"])


def table(jobs) -> str:
    """Return the batch as text: one row per method, one column per state, hours; then failed runs with reasons."""
    rows = states(jobs)
    counts = pd.crosstab(rows.method, rows.state).reindex(rows.method.unique()).reindex(columns=STATES, fill_value=0)
    counts = counts.join(rows.groupby("method")[["spent", "left"]].sum())
    counts.loc["all"] = counts.sum()
    counts[list(STATES)] = counts[list(STATES)].astype(int)
    unit = "GPU h" if any(costs.read(job.profile, job.method).gpu for job in jobs[:1]) else "h"
    counts = counts.rename(columns={"spent": f"{unit} spent", "left": f"{unit} left"}).rename_axis(None)
    failed = rows[rows.state == "failed"]
    lines = [counts.to_string(float_format="{:.1f}".format)]
    return "\n".join([*lines, *(f"failed: {row.folder}: {row.reason}" for row in failed.itertuples())])


def _hours(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / "record.json").read_text())["timing"]["total_s"] / 3600
    return 0.0
