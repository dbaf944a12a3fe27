# The batch of notebooks. Rules only: what there is to run comes from adlib_book.notebook_jobs, how it runs from `adlib`.
#
#     snakemake --cores 2 --config profile=smoke
#     snakemake --executor slurm --jobs 20 --config profile=paper data_root=/data     (with the Slurm plugin)

import re

from adlib import source_files
from adlib.methods import METHODS
from adlib.paths import results_dir
from adlib_book import notebook_jobs

PROFILE = config.get("profile", "smoke")
DATA_ROOT = config.get("data_root", "")
RESULTS = results_dir()
JOBS = {job.folder: job for job in notebook_jobs.plan(PROFILE, DATA_ROOT)}
RECORDS = {folder: f"{RESULTS}/runs/{folder}/record.json" for folder in JOBS}
STORIES, STUDIES, READERS = map(notebook_jobs.notebooks, ("story", "study", "records"))


# The small runs of the smoke profile go side by side, one thread each. Otherwise torch uses every core, and runs follow
# one another on one machine; a cluster runs them side by side.
THREADS = 1 if PROFILE == "smoke" else workflow.cores
shell.prefix(f"export OMP_NUM_THREADS={THREADS}; " if THREADS == 1 else "")


def records_of_study(name):
    """Study 20 puts PatchCore's records on MVTec AD beside the paper's figures; the others read none."""
    read = [job for job in JOBS.values() if (job.method, job.dataset) == ("patchcore", "mvtec_ad")]
    return [RECORDS[job.folder] for job in read] if name == "20_patchcore_paper" else []


rule all:
    input:
        list(RECORDS.values()),
        notebook_jobs.once_outputs(PROFILE, DATA_ROOT),


rule method:
    input:
        lambda w: f"notebooks/{METHODS[JOBS[w.run].method].notebook}.ipynb",
        lambda w: map(str, source_files.of_method(JOBS[w.run].method)),
        f"profiles/{PROFILE}.yaml",
    output:
        f"{RESULTS}/runs/{{run}}/record.json",
        f"{RESULTS}/runs/{{run}}/scores.csv",
    wildcard_constraints:
        run="|".join(map(re.escape, JOBS)),  # other records, as the committed ones, are read and never made here
    params:
        command=lambda w: JOBS[w.run].command(f"{RESULTS}/runs/{w.run}"),
    threads: THREADS
    priority: 2
    shell:
        # A story that fails costs no record: the command says --keep-going, and `adlib reproduce` reports story.json.
        "adlib {params.command:q}"


rule story:
    input:
        "notebooks/{name}.ipynb",
        # The first notebook shows the headline table, which the tables' notebook writes.
        lambda w: f"{RESULTS}/notebooks/{w.profile}/{notebook_jobs.TABLES_NOTEBOOK}.ipynb" if w.name == "00_start_here" else [],
    output:
        f"{RESULTS}/notebooks/{{profile}}/{{name}}.ipynb",
    wildcard_constraints:
        name="|".join(STORIES),
    threads: THREADS
    priority: 1
    shell:
        "adlib notebook {wildcards.name} --out {output}"


rule study:
    input:
        "notebooks/{name}.ipynb",
        lambda w: notebook_jobs.inputs(w.name),
        lambda w: f"profiles/{w.profile}.yaml",
        lambda w: records_of_study(w.name),
    output:
        f"{RESULTS}/notebooks/{{profile}}/{{name}}.ipynb",
    wildcard_constraints:
        name="|".join(STUDIES),
    params:
        command=lambda w, output: notebook_jobs.study_command(w.name, w.profile, list(JOBS.values()), DATA_ROOT, output[0]),
    threads: THREADS
    shell:
        "adlib {params.command:q}"


rule records:
    input:
        "notebooks/{name}.ipynb",
        lambda w: notebook_jobs.inputs(w.name),
        list(RECORDS.values()),
    output:
        f"{RESULTS}/notebooks/{{profile}}/{{name}}.ipynb",
    wildcard_constraints:
        name="|".join(READERS),
    params:
        root=DATA_ROOT,
    threads: THREADS
    shell:
        "adlib notebook {wildcards.name} --set profile={PROFILE} --set data_root={params.root:q} --out {output}"
