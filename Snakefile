# The batch of notebooks. Rules only: what there is to run comes from adlib_book.notebook_jobs, how it runs from `adlib`.
#
#     snakemake --cores 2 --config profile=smoke
#     snakemake --workflow-profile profiles/slurm --config profile=paper data_root=/data      (with the Slurm plugin)
#
# The output of a job is a file that says what its result was made from, never the result: Snakemake deletes the outputs
# of a job that fails, is refused or cancelled, and the record of an earlier run must outlive that.

import functools
import os
import shlex
from pathlib import Path

from adlib.paths import results_dir
from adlib_book import costs, notebook_jobs, progress

ASKED = notebook_jobs.from_config(config)
PROFILE, DATA_ROOT, RESULTS = ASKED.get("profile", "smoke"), ASKED.get("data_root", ""), results_dir()
request = functools.cache(costs.request)
CHOSEN = {field: ASKED.get(field, "") for field in notebook_jobs.SELECTORS}
PLAN = notebook_jobs.plan(PROFILE, DATA_ROOT)
JOBS = {job.folder: job for job in PLAN}
STORIES, STUDIES, READERS = map(notebook_jobs.notebooks, ("story", "study", "records"))
TO_DO = []
if workflow.is_main_process:  # a job of a cluster reads this file too, for itself alone
    selected = notebook_jobs.select(PLAN, **CHOSEN)
    TO_DO = notebook_jobs.to_do(selected, PROFILE, DATA_ROOT, whole=not any(CHOSEN.values()))
    progress.forget(TO_DO)
# Snakemake starts a job with the threads of its rule; a number that the user asked for stays: last digits depend on it.
if os.environ.get("OMP_NUM_THREADS"):
    user_threads = shlex.quote(os.environ["OMP_NUM_THREADS"])
    shell.prefix(f"export OMP_NUM_THREADS={user_threads} MKL_NUM_THREADS={user_threads}; ")


def made_before(wildcards):
    """What a notebook reads and this batch makes: done-files of runs; of the tables, for the first notebook."""
    jobs = [task for task in TO_DO if not isinstance(task, str)]
    files = [progress.done_file(job) for job in notebook_jobs.waits_for(wildcards.name, PROFILE, jobs)]
    tables = [task for task in TO_DO if isinstance(task, str) and Path(task).stem == notebook_jobs.TABLES_NOTEBOOK]
    return files + ([progress.done_file(tables[0])] if tables and wildcards.name == notebook_jobs.START_NOTEBOOK else [])


def asked(resource):
    """A resource of profiles/costs.yaml, as a function of a job."""
    entry = lambda w: JOBS[w.run].method if "run" in w.keys() else costs.NOTEBOOKS
    return lambda w, attempt: request(PROFILE, entry(w), attempt)[resource]


@functools.cache
def once(name):
    return notebook_jobs.once_commands(name, PROFILE, PLAN, DATA_ROOT)


rule all:
    input:
        [progress.done_file(task) for task in TO_DO],


rule method:
    output:
        f"{RESULTS}/runs/{{run}}/{progress.DONE}",
    wildcard_constraints:
        run=f"{PROFILE}/.+",  # other records, as the committed ones, are read and never made here
    params:
        command=lambda w: JOBS[w.run].command(f"{RESULTS}/runs/{w.run}"),
    threads: lambda w: costs.read(PROFILE, JOBS[w.run].method).threads
    resources:
        mem_mb=asked("mem_mb"),
        runtime=asked("runtime"),
        gpu=asked("gpu"),
    priority: 2
    shell:
        # A failed story is no failed run: the command says --keep-going, and `adlib reproduce` reports story.json.
        "adlib {params.command:q} --done {output:q}"


rule notebook:
    input:
        made_before,
    output:
        f"{RESULTS}/notebooks/{PROFILE}/.{{name}}{progress.DONE}",
    wildcard_constraints:
        name="|".join([*STORIES, *STUDIES, *READERS]),
    params:
        # A study of several categories: one after the other, each adds its rows to the study's table.
        before=lambda w: "".join(f"{shlex.join(['adlib', *command])} && " for command in once(w.name)[:-1]),
        command=lambda w: once(w.name)[-1],
    threads: costs.read(PROFILE, costs.NOTEBOOKS).threads
    resources:
        mem_mb=asked("mem_mb"),
        runtime=asked("runtime"),
        gpu=asked("gpu"),
    shell:
        "{params.before}adlib {params.command:q} --done {output:q}"
