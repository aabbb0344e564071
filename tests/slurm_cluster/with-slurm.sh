#!/usr/bin/env bash
# with-slurm.sh COMMAND…: installs Slurm if it is missing (Debian, root), starts a cluster of two nodes on this machine, runs the command with
# SLURM_CONF and SLURM_CLUSTER (the cluster's folder) set, and stops everything again. Needs neither systemd nor cgroups.
set -euo pipefail

if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
    echo "installing slurm-wlm and munge" >&2
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends slurm-wlm slurmd slurmctld munge >/dev/null
fi

cluster=$(mktemp -d /tmp/sam-ladder-slurm.XXXXXX)
export SLURM_CLUSTER=$cluster SLURM_CONF=$cluster/slurm.conf
mkdir "$cluster"/{state,n1,n2}

cat > "$SLURM_CONF" <<CONF
ClusterName=samladder
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$cluster/munge.socket
SlurmctldPort=${SLURMCTLD_PORT:-16817}
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd-%n.pid
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
# A node that stops answering is given up after ten seconds, and what ran on it goes back to the queue.
SlurmdTimeout=10
KillWait=5
# Seconds that ended jobs stay known without accounting.
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1,sched_interval=2
# Jobs of \`urgent\` send those of \`low\` back to the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=${SLURMD_PORT_1:-16821} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=${SLURMD_PORT_2:-16822} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=2
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
CONF

stop() {
    trap - EXIT INT TERM
    scancel --user=root 2>/dev/null || true
    sleep 1
    local pid file
    for file in slurmctld slurmd-n1 slurmd-n2 munged; do
        pid=$(cat "$cluster/$file.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    # Jobs of ours that outlived their node.
    for pid in $(grep -l --text --null-data "^SLURM_CONF=$SLURM_CONF$" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do
        [ "$pid" = $$ ] || { tr '\0' '\n' 2>/dev/null < "/proc/$pid/environ" | grep -q ^SLURM_JOB_ID= && kill -KILL "$pid" 2>/dev/null; } || true
    done
    if [ "${KEEP_SLURM_LOGS:-}" ]; then echo "logs: $cluster" >&2; else rm -rf "$cluster"; fi
}
trap stop EXIT
trap 'exit 130' INT TERM

head -c 1024 /dev/urandom > "$cluster/munge.key"
chmod 400 "$cluster/munge.key"
munged --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" --pid-file="$cluster/munged.pid" \
    --log-file="$cluster/munged.log" --seed-file="$cluster/munged.seed"
slurmctld
for node in n1 n2; do slurmd -N "$node"; done
for _ in $(seq 60); do
    [ "$(sinfo --noheader --Node --partition=main --states=idle 2>/dev/null | wc -l)" = 2 ] && ready=yes && break
    sleep 0.5
done
[ "${ready:-}" ] || { echo "the cluster did not start:" >&2; tail -n 20 "$cluster"/*.log >&2; exit 1; }
"$@"
