#!/usr/bin/env bash
# The batch on a real Slurm of one node (make slurm-test): Debian's slurm-wlm, its configuration in a folder of its own.
#
# Where packages cannot be installed, or a Slurm is configured already, it says so and does nothing. JOBS=stand-in
# replaces the runs by a script that writes a record and waits: the scheduling, the files and the states stay real.
set -euo pipefail
cd "$(dirname "$0")/.."
JOBS=${JOBS:-real}
skip() { echo "skipped: $1"; exit 0; }
for place in "${SLURM_CONF:-}" /etc/slurm/slurm.conf /etc/slurm-llnl/slurm.conf; do
    [ -n "$place" ] && [ -e "$place" ] && skip "a Slurm is configured here: $place"
done
[ "$(id -u)" = 0 ] || skip "packages are installed, and Slurm's daemons started, as root"
command -v slurmctld >/dev/null || { command -v apt-get >/dev/null && apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm >/dev/null; } ||
    skip "slurm-wlm cannot be installed here"
python -c "import snakemake_executor_plugin_slurm" 2>/dev/null || python -m pip install -q -c constraints.txt ".[slurm]" ||
    skip "the Slurm plugin of Snakemake cannot be installed"

work=$(mktemp -d) node=$(hostname -s)
mkdir "$work/state" "$work/spool" "$work/bin" "$work/results" "$work/local"
export SLURM_CONF=$work/slurm.conf ADLIB_RESULTS=$work/results
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
if [ "$JOBS" != real ]; then
    cat > "$work/bin/adlib" <<'STANDIN'
#!/usr/bin/env python3
"""adlib run, without the run: writes the record after WAIT_<method> seconds."""
import os, sys, time
from pathlib import Path
method = sys.argv[2]
sys.path.insert(0, os.environ["ADLIB_ROOT"])
value = lambda name: sys.argv[sys.argv.index(name) + 1]
from adlib_book import notebook_jobs, progress
out = Path(value("--out"))
job = next(job for job in notebook_jobs.plan("smoke") if out.as_posix().endswith(job.folder))
import signal
signal.signal(signal.SIGTERM, signal.default_int_handler)
with progress.reported(out):
    time.sleep(float(os.environ.get(f"WAIT_{method}", 0)))
    record = f'{{"method": "{method}", "threads": {os.environ["OMP_NUM_THREADS"]}}}'
    (out / "record.json").write_text(record)
    progress.write_done(value("--done"), progress.of_run(job))
STANDIN
    chmod +x "$work/bin/adlib"
    export ADLIB_ROOT=$PWD
fi
batch() { local where=$1; shift; env PATH="$work/bin:$PATH" snakemake --snakefile Snakefile --directory "$work/$where" \
    --quiet rules progress host reason --config profile=smoke "${chosen[@]}" "$@" > "$work/log" 2>&1; }
# Without an accounting database squeue alone knows how a job ended.
slurm() { batch results --workflow-profile profiles/slurm --retries 0 --latency-wait 5 \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 --default-resources slurm_partition=main "$@"; }
status() { adlib status --method "$1"; }
expect() { if [ "$2" = "$3" ]; then echo "ok      $1"; else echo "FAILED  $1: expected $3, got $2"; tail -30 "$work/log"; exit 1; fi; }
state() { python -c "import sys; from adlib_book import notebook_jobs as n, progress as p
print(*p.states(n.select(n.plan('smoke'), method=sys.argv[1], category='gear')).state)" "$1"; }
job() { squeue --noheader --format=%i --states=RUNNING; }
wait_for_job() { for _ in $(seq 300); do
    [ -e "$work/results/runs/smoke/padim/demo-gear-seed0/job.json" ] && [ -n "$(job)" ] && sleep "${1:-5}" && return; sleep 1
done; echo "FAILED  no job started"; exit 1; }

slurmctld && slurmd -N "$node"
echo "Slurm $(sinfo --version | cut -d' ' -f2), plugin $(python -c 'import importlib.metadata as m; print(m.version("snakemake-executor-plugin-slurm"))'), jobs: $JOBS"

chosen=(method=padim,spade category=gear)
slurm && code=0 || code=$?
expect "two runs through profiles/slurm" "$code $(state padim) $(state spade)" "0 done done"
cp -r "$work/results/runs" "$work/first"
slurm && code=0 || code=$?
expect "nothing to do the second time" "$code $(grep -c submitted "$work/log")" "0 0"

chosen=(method=padim category=gear)
echo "older inputs" > "$work/results/runs/smoke/padim/demo-gear-seed0/.done"
slurm --set-resources method:mem_mb=999999 && code=0 || code=$?
expect "a refused rerun leaves the old record" "$((code != 0)) $(state padim)" "1 older"

export WAIT_padim=300
rm -f "$work/results/runs/smoke/padim/demo-gear-seed0/job.json"
slurm & controller=$!
wait_for_job 10
expect "status while it runs" "$(state padim)" "running"
scancel "$(job)"
wait "$controller" && code=0 || code=$?
expect "a cancelled rerun leaves it too" "$((code != 0)) $(state padim)" "1 failed"
status padim | tail -1

slurm --set-resources method:runtime=1 && code=0 || code=$?
expect "so does one at its limit of time" "$((code != 0)) $(state padim)" "1 failed"
status padim | tail -1

export WAIT_padim=60
rm -f "$work/results/runs/smoke/padim/demo-gear-seed0/job.json"
slurm & controller=$!
wait_for_job 5
kill -KILL $(pgrep -P "$controller") "$controller" 2>/dev/null; wait "$controller" 2>/dev/null || true
for _ in $(seq 300); do [ -z "$(squeue --noheader)" ] && break; sleep 1; done
expect "the job of a killed controller ends" "$(state padim)" "done"
unset WAIT_padim
slurm && code=0 || code=$?
expect "and the next controller finds it done" "$code $(grep -c submitted "$work/log")" "0 0"

chosen=(method=padim,spade category=gear)
ADLIB_RESULTS=$work/local batch local --cores 2 --nolock && code=0 || code=$?
expect "the same on this machine" "$code" "0"
python - "$work/first" "$work/local/runs" "$work/results/runs" <<'SAME'
import json, sys
from pathlib import Path
first, *others = map(Path, sys.argv[1:])
timed = ("timing", "peak_memory_mib", "created")
read = lambda file: {k: v for k, v in json.loads(file.read_text()).items() if k not in timed}
files = sorted(first.rglob("record.json"))
for file in files:
    for other in others:
        assert read(file) == read(other / file.relative_to(first)), file
scores = sorted(first.rglob("scores.csv"))
assert all(file.read_bytes() == (others[0] / file.relative_to(first)).read_bytes() for file in scores)
print(f"ok      {len(files)} records and {len(scores)} score tables are bit for bit those of a local run")
SAME
stop && trap - EXIT && rm -rf "$work"
