"""A campaign of kills and of nonsense: commands that end at their n-th file operation, command lines of odd values."""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import faiss
import numpy as np
import pytest
import timm  # noqa: F401  (loaded once, before the forks)
import torch
from conftest import texture, write_image

from adlib import own_parts, profiles, runs  # noqa: F401
from adlib.methods import padim, patchcore, storage  # noqa: F401
from adlib_book import cli

LONG = os.environ.get("ADLIB_CAMPAIGN") == "long"
KILLS, LINES = (100, 10_000) if LONG else (5, 150)  # of each command; of all
SMALL = ["--method", "patchcore", "--profile", "smoke", "--set", "image_size=64", "--set", "coreset=0.25"]
COMMANDS = {
    "train": ["train", "-i", "good", "-o", "model", *SMALL],
    "threshold": ["threshold", "-m", "model", "-i", "more"],
    "update": ["update", "-m", "model", "-i", "more"],
    "predict": ["predict", "-m", "model", "-i", "new", "-o", "out"],
    "evaluate": ["evaluate", "-m", "model", "--category", "plate", "--out", "evaluation"],
    "run": ["run", "padim", "--category", "plate", "--no-story", "--force", "--out", "record", "--profile", "smoke"],
}
DATED = ("record.json", "notebook.ipynb", "job.json")  # two runs of the same differ in times
WRITE = os.O_WRONLY | os.O_RDWR
ODD = ["-1", "0", "nan", "inf", "1e999", "~nobody", ".", "no/such", "model", "a=b", "seed=-1", "[1", "", " ", "é" * 300]


def in_a_process(arguments, last: int | None = None) -> tuple[int, int]:
    """Run a command in a fork, which ends like a killed one before file operation `last`: exit code and operations."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            count = len(pipe.read())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), count
    code, done = 70, itertools.count()

    def watch(event, values):
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (event == "open" and values[2] & WRITE):
            if next(done) == last:
                os._exit(137)
            os.write(writer, b".")

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        torch.set_num_threads(1)  # the threads of the parent are not there
        faiss.omp_set_num_threads(1)
        sys.addaudithook(watch)
        code = cli.main(arguments)
    finally:
        os._exit(code)


def contents(folder) -> dict[str, str]:
    """Digest of every file of a result, by name; hidden ones are nobody's result."""
    files = [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file.name[0] != "." and file.name not in DATED
    ]
    return {str(file.relative_to(folder)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, small_tree):
    """A folder with photographs, a model of them, the answer to new ones and the record of a run."""
    folder, rng = tmp_path_factory.mktemp("campaign"), np.random.default_rng(0)
    for name, number in {"good": 6, "more": 4, "new": 3}.items():
        for i in range(number):
            write_image(folder / name / f"{i}.png", texture(rng, 64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("evaluate", "run"):
            COMMANDS[name] += ["--data-root", str(small_tree), "--dataset", "mvtec"]
        COMMANDS["run"] += ["--set", "image_size=64"]
        assert [in_a_process(COMMANDS[name])[0] for name in ("train", "predict", "run", "evaluate")] == [0, 0, 0, 0]
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_what_was_there_whole_and_the_next_one_ends_as_if_nothing_had_been(
    parts, tmp_path, monkeypatch, capsys, name
):
    shutil.copytree(parts, tmp_path / "right")
    monkeypatch.chdir(tmp_path / "right")
    code, n_operations = in_a_process(COMMANDS[name])
    right = contents(tmp_path / "right")
    assert code == 0
    steps = sorted({round(step) for step in np.linspace(0, n_operations - 1, KILLS)})
    for step in steps:
        shutil.copytree(parts, tmp_path / str(step))
        monkeypatch.chdir(tmp_path / str(step))
        assert in_a_process(COMMANDS[name], step)[0] == 137
        storage.read_model("model")  # the old or the new one, whole
        runs.read_record("record"), runs.read_record("evaluation")
        assert in_a_process(COMMANDS[name])[0] == 0
        now = contents(tmp_path / str(step))
        assert right.items() <= now.items()
        assert len(now) - len(right) <= (name == "update")  # at most the tensors of before, which nothing names
    with capsys.disabled():
        print(f"\n{name}: killed at {len(steps)} of {n_operations} file operations, nothing lost")


@pytest.mark.skipif(not LONG, reason="minutes")
def test_a_killed_batch_goes_on_where_it_was(small_tree, tmp_path, capsys):
    names, own = ("padim", "spade"), tmp_path / "own.yaml"
    profile = {"based_on": "smoke", "discover": True, "seeds": [0, 1], "only": {name: ["plate"] for name in names}}
    own.write_text(json.dumps(profile | {"methods": {name: {"image_size": 64} for name in names}}))
    command = [Path(sys.executable).with_name("adlib"), "reproduce", "--profile", own]
    command += ["--data-root", small_tree, "--method", ",".join(names), "--seed", "1"]  # seed 0 tells the stories

    def start(name):
        environment = os.environ | {"ADLIB_RESULTS": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=-3, stderr=-3, start_new_session=True)

    started = time.perf_counter()
    assert start("right").wait() == 0
    seconds, right = time.perf_counter() - started, contents(tmp_path / "right/runs")
    assert sum(name.endswith("scores.csv") for name in right) == len(names)
    for kill in range(kills := 30):
        batch = start(str(kill))
        with suppress(subprocess.TimeoutExpired):
            batch.wait(seconds * kill / kills)
        os.killpg(batch.pid, signal.SIGKILL)
        assert start(str(kill)).wait() == 0
        assert contents(tmp_path / str(kill) / "runs") == right
    with capsys.disabled():
        print(f"\na batch of two runs: killed {kills} times, nothing lost")


def test_nonsense_is_one_line(parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    rng, counts = random.Random(0), {}
    photographs = {name: contents(parts / name) for name in ("good", "more", "new")}
    commands = cli.cli.build_parser(cli.add_commands)._subparsers._group_actions[0].choices
    for _ in range(LINES):
        name = rng.choice(["train", "threshold", "predict", "update", "evaluate", "data"])
        line = [name]
        for action in commands[name]._actions:
            if action.dest != "help" and action.option_strings and (action.required or rng.random() < 0.2):
                line += [action.option_strings[-1], *([] if action.nargs == 0 else [rng.choice(ODD)])]
        line += ["--set", "no_such=1"] if name == "train" else []
        try:
            code = cli.main(line)
        except SystemExit as end:  # argparse: the usage, then one line
            code = end.code
        said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("adlib")]
        assert code in (0, 2), line
        assert code == 0 or len(said) <= 1, (line, said)
        counts[code] = counts.get(code, 0) + 1
    assert photographs == {name: contents(parts / name) for name in photographs}
    with capsys.disabled():
        print(f"\n{LINES} command lines: {counts}")
