#!/usr/bin/env bash
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
# One process a machine, with all its GPUs. The signal comes to them 180 s before the job's time is over: training saves, ends with
# 143, and the job goes back into the queue, as after any other failure up to RESTARTS times.
set -euo pipefail
# settings

readonly LOG=$DIRECTORY/slurm-$SLURM_JOB_ID.log
code=0
# One process that fails must not have the others killed: their SIGTERM would pass for a preemption.
srun --kill-on-bad-exit=0 bash "$DIRECTORY/host.sh" train || code=$?
failures=$(cat "$LOG.failures" 2>/dev/null || echo 0)
case $code in
  0 | 2) ;;
  143) exec scontrol requeue "$SLURM_JOB_ID" ;;
  *)
    if [ "$failures" -lt "$RESTARTS" ]; then
      echo "$((failures + 1))" >"$LOG.failures"
      exec scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
echo "$code" >"$LOG.code"
exit "$code"
