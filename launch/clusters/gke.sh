#!/usr/bin/env bash
# A JobSet on GKE: submits it and shows the log of process 0 until the run ends. Kueue admits it, and JobSet starts it again: this
# script may be interrupted.
#
#   run.sh         starts the run, or follows the one that is there
#   run.sh stop    ends it and deletes the JobSet
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# settings

# cloud.sh

readonly PODS=jobset.sigs.k8s.io/jobset-name=$NAME
readonly FIRST=$PODS,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0

start() {
  ship
  kubectl create --filename=gke.yaml
}

stop() {
  kubectl delete jobset "$NAME"
}

# "NAME", "NAME Completed" or "NAME Failed"; nothing when there is no JobSet. Fails when nobody can tell.
state() {
  kubectl get jobset "$NAME" --ignore-not-found --output=jsonpath='{.metadata.name} {.status.terminalState}'
}

# Tells why a JobSet failed, with the last lines of every host that did, and ends with the first one's exit code.
explain() {
  local codes='{range .items[*]}{.status.containerStatuses[?(@.name=="train")].state.terminated.exitCode}{"\n"}{end}'
  kubectl get jobset "$NAME" --output=jsonpath='{.status.conditions[?(@.type=="Failed")].message}{"\n"}' >&2
  kubectl logs --selector="$PODS" --container=train --prefix --tail=20 --ignore-errors >&2 || true
  codes=$(kubectl get pods --selector="$PODS" --field-selector=status.phase=Failed --output=jsonpath="$codes")
  exit "$(awk 'NF && !code { code = $1 } END { print code ? code : 1 }' <<<"$codes")"
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
now=$(state)
case $now in
  "") start ;;
  *Completed | *Failed) # of an earlier call
    stop
    start
    ;;
esac
last=""
while true; do
  case $(state || true) in
    *Completed)
      say "the run is done"
      exit
      ;;
    *Failed) explain ;;
  esac
  pod=$(kubectl get pods --selector="$FIRST" --sort-by=.metadata.creationTimestamp \
    --output=jsonpath='{range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}') || pod="cannot be asked"
  pod=${pod##*$'\n'} # the newest: one from before a restart may still be ending
  [ "$pod" = "$last" ] || say "process 0: ${pod:-waiting for Kueue}"
  last=$pod
  if [[ "$pod" = *" Running" ]]; then kubectl logs --follow --container=train "${pod% *}" || true; fi
  sleep 10
done
