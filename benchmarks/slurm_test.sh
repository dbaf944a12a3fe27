#!/usr/bin/env bash
# The batch on a real Slurm of one node (make slurm-test): Debian's slurm-wlm, its configuration in a folder of its own.
#
# Real runs, of demo data: PaDiM, and DFR, whose training is cancelled, stopped at its limit of time and outlives its
# controller, and must end as one that nothing interrupted. Where packages cannot be installed, or a Slurm is configured
# already, it says so and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "skipped: $1"; exit 0; }
for place in "${SLURM_CONF:-}" /etc/slurm/slurm.conf /etc/slurm-llnl/slurm.conf; do
    [ -n "$place" ] && [ -e "$place" ] && skip "a Slurm is configured here: $place"
done
[ "$(id -u)" = 0 ] || skip "packages are installed, and Slurm's daemons started, as root"
command -v slurmctld >/dev/null || { command -v apt-get >/dev/null && apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm >/dev/null; } ||
    skip "slurm-wlm cannot be installed here"
python -c "import snakemake_executor_plugin_slurm" 2>/dev/null || python -m pip install -q -c constraints.txt -e ".[slurm]" ||
    skip "the Slurm plugin of Snakemake cannot be installed"

work=$(mktemp -d) node=$(hostname -s)
mkdir "$work/state" "$work/spool" "$work/bin" "$work/results" "$work/local"
export SLURM_CONF=$work/slurm.conf ADLIB_RESULTS=$work/results ADLIB_PROFILE=$work/slurm_test.yaml OMP_NUM_THREADS=1
cat > "$ADLIB_PROFILE" <<PROFILE
based_on: laptop
keep_models: true
datasets: {demo: {categories: [gear]}}
only: {}
seeds: [0]
methods: {padim: {image_size: 64}, dfr: {image_size: 64, map_size: 8, steps: 3000}}
PROFILE
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=17817
SlurmdPort=17818
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=10
SlurmdTimeout=600
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=6000 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=600 State=UP
CONF
# The plugin takes all SLURM_* out of a job's environment; this Slurm is found by one of them alone.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$work/bin/srun"
chmod +x "$work/bin/srun"
stop() { for daemon in slurmd slurmctld; do kill "$(cat "$work/$daemon.pid" 2>/dev/null)" 2>/dev/null || true; done; }
trap stop EXIT
batch() { local where=$1; shift; env PATH="$work/bin:$PATH" snakemake --snakefile Snakefile --directory "$work/$where" \
    --quiet rules progress host reason --config profile=slurm_test "${chosen[@]}" "$@" > "$work/log" 2>&1; }
# Without an accounting database squeue alone knows how a job ended.
slurm() { batch results --workflow-profile profiles/slurm --retries 0 --latency-wait 5 \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 --default-resources slurm_partition=main "$@"; }
status() { adlib status --profile slurm_test --method dfr | tail -1; }
expect() { if [ "$2" = "$3" ]; then echo "ok      $1"; else echo "FAILED  $1: expected $3, got $2"; tail -30 "$work/log"; exit 1; fi; }
state() { python -c "import sys; from adlib_book import notebook_jobs as n, progress as p
print(*p.states(n.select(n.plan('slurm_test'), method=sys.argv[1])).state)" "$1"; }
job() { squeue --noheader --format=%i --states=RUNNING; }
dfr=$work/results/runs/slurm_test/dfr/demo-gear-seed0
wait_for() { for _ in $(seq 1500); do "$@" && return; sleep 0.2; done; echo "FAILED  waited for $*"; tail -30 "$work/log"; exit 1; }
running() { [ -n "$(job)" ] && grep -qs '"running"' "$dfr/job.json"; }
training() { running && compgen -G "$dfr/checkpoint-*" >/dev/null; }
idle() { [ -z "$(squeue --noheader)" ]; }

slurmctld && slurmd -N "$node"
echo "Slurm $(sinfo --version | cut -d' ' -f2), plugin $(python -c 'import importlib.metadata as m; print(m.version("snakemake-executor-plugin-slurm"))')"

chosen=(method=padim,dfr)
slurm && code=0 || code=$?
expect "two runs through profiles/slurm" "$code $(state padim) $(state dfr)" "0 done done"
cp -r "$work/results/runs" "$work/first"
slurm && code=0 || code=$?
expect "nothing to do the second time" "$code $(grep -c submitted "$work/log")" "0 0"

chosen=(method=dfr)
python - "$dfr" <<'OLDER'  # as after a change of the code
import sys
from adlib.record_files import read_record, write_record
write_record(sys.argv[1], read_record(sys.argv[1]) | {"content_hash": "older"})
OLDER
echo "older inputs" > "$dfr/.done"
slurm --set-resources method:mem_mb=999999 && code=0 || code=$?
expect "a refused rerun leaves the old record" "$((code != 0)) $(state dfr)" "1 older"

slurm & controller=$!
wait_for training
expect "status while it runs" "$(state dfr)" "running"
scancel "$(job)"
wait "$controller" && code=0 || code=$?
expect "a cancelled rerun leaves it too, and its checkpoint" "$((code != 0)) $(state dfr) $(ls "$dfr" | grep -c checkpoint)" "1 failed 1"
status
echo "        its checkpoint is of step $(python -c "import sys, torch
print(torch.load(sys.argv[1], weights_only=True)['step'])" "$dfr"/checkpoint-*) of 3000"

slurm --set-resources method:runtime=1 & controller=$!
wait_for running
kill -STOP $(scontrol listpids "$(job)" | awk 'NR > 1 {print $1}')  # however fast this machine is, it reaches its limit
wait "$controller" && code=0 || code=$?
expect "so does one at its limit of time" "$((code != 0)) $(state dfr) $(ls "$dfr" | grep -c checkpoint)" "1 failed 1"
status

slurm & controller=$!
wait_for running
kill -KILL $(pgrep -P "$controller") "$controller" 2>/dev/null; wait "$controller" 2>/dev/null || true
wait_for idle
expect "the job of a killed controller ends" "$(state dfr) $(ls "$dfr" | grep -c checkpoint)" "done 0"
slurm && code=0 || code=$?
expect "and the next controller finds it done" "$code $(grep -c submitted "$work/log")" "0 0"

chosen=(method=padim,dfr)
ADLIB_RESULTS=$work/local batch local --cores 2 --nolock && code=0 || code=$?
expect "the same on this machine" "$code" "0"
python - "$work/first" "$work/local/runs" "$work/results/runs" <<'SAME'
import json, sys
from pathlib import Path
first, *others = map(Path, sys.argv[1:])
timed = ("timing", "peak_memory_mib", "created", "seconds", "digest")  # the digest covers the others
untimed = lambda facts: {key: value for key, value in facts.items() if key not in timed}
read = lambda file: json.loads(file.read_text(), object_hook=untimed)
files = sorted(first.rglob("record.json"))
exact = [file for name in ("scores.csv", "model-*.safetensors") for file in sorted(first.rglob(name))]
for other in others:
    for file in files:
        assert read(file) == read(other / file.relative_to(first)), file
    for file in exact:
        assert file.read_bytes() == (other / file.relative_to(first)).read_bytes(), file
print(f"ok      {len(files)} records and {len(exact)} files of scores and weights: bit for bit those of a local run, "
      "and of one that nothing interrupted")
SAME
stop && trap - EXIT && rm -rf "$work"
