# The batch of notebooks. Rules only: what there is to run comes from adlib.batch, how it runs from `adlib`.
#
#     snakemake --cores 2 --config profile=smoke
#     snakemake --executor slurm --jobs 20 --config profile=paper data_root=/data     (with the Slurm plugin)

from adlib import batch, runs
from adlib.paths import results_dir

PROFILE = config.get("profile", "smoke")
DATA_ROOT = config.get("data_root", "")
RESULTS = results_dir()
JOBS = {job.folder: job for job in batch.plan(PROFILE, DATA_ROOT)}
RECORDS = [f"{RESULTS}/runs/{folder}/record.json" for folder in JOBS]
TABLES = f"{RESULTS}/notebooks/{PROFILE}/{batch.TABLES_NOTEBOOK}.ipynb"


def job_of(wildcards):
    return JOBS[f"{wildcards.profile}/{wildcards.method}/{wildcards.run}"]


rule all:
    input:
        RECORDS,
        batch.single_outputs(PROFILE),
        TABLES,


# torch uses every core, so runs follow one another on one machine; a cluster runs them side by side.
rule method:
    input:
        lambda w: f"notebooks/{batch.METHOD_NOTEBOOKS[w.method]}.ipynb",
        lambda w: [str(file) for file in runs.source_files(w.method)],
        lambda w: f"profiles/{w.profile}.yaml",
    output:
        f"{RESULTS}/runs/{{profile}}/{{method}}/{{run}}/record.json",
        f"{RESULTS}/runs/{{profile}}/{{method}}/{{run}}/scores.csv",
    params:
        command=lambda w: job_of(w).command(f"{RESULTS}/runs/{w.profile}/{w.method}/{w.run}"),
    threads: workflow.cores
    shell:
        "adlib {params.command:q}"


rule notebook:
    input:
        "notebooks/{name}.ipynb",
    output:
        f"{RESULTS}/notebooks/{{profile}}/{{name}}.ipynb",
    wildcard_constraints:
        name="(?!90_)[^/]+",
    threads: workflow.cores
    shell:
        "adlib notebook {wildcards.name} --out {output}"


rule tables:
    input:
        "notebooks/90_tables.ipynb",
        "adlib/tables.py",
        RECORDS,
    output:
        TABLES,
    params:
        root=DATA_ROOT,
    shell:
        "adlib notebook 90_tables --set profile={PROFILE} --set data_root={params.root:q} --out {output}"
