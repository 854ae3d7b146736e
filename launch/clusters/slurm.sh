#!/usr/bin/env bash
# Slurm: installs the code beside the run, submits the job and shows its log until the run ends. Slurm puts it back into the queue
# after a preemption and before its time is over: this script may be interrupted.
#
#   run.sh         starts the run, or follows the one that is there
#   run.sh stop    ends it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# settings

say() {
  printf '%s: %s\n' "$NAME" "$*" >&2
}

stop() {
  scancel --me --name="$NAME"
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
job=$(squeue --noheader --me --name="$NAME" --format=%A | head -n 1)
if [ -z "$job" ]; then
  # The login node has the network that an installation needs, and the hosts see its files.
  mkdir -p "$DIRECTORY"
  cp "$REVISION.tar.gz" host.sh "$DIRECTORY"
  bash host.sh prepare
  job=$(sbatch --parsable --job-name="$NAME" --output="$DIRECTORY/slurm-%j.log" "${BATCH[@]}" slurm_batch.sh)
fi
job=${job%%;*} # a cluster's name may follow the number
log=$DIRECTORY/slurm-$job.log
say "job $job, log $log"
tail --lines=+1 --follow=name --retry "$log" 2>/dev/null &
trap 'kill %1' EXIT
until [ -e "$log.code" ]; do
  left=$(squeue --noheader --me --name="$NAME" --format=%A) || left="cannot be asked"
  [ -n "$left" ] || break
  sleep 10
done
sleep 2 # the last lines
code=$(cat "$log.code" 2>/dev/null || echo 1)
say "job $job has ended with exit code $code"
exit "$code"
