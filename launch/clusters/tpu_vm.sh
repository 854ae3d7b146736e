#!/usr/bin/env bash
# TPU VMs by queued resources: asks for the slices, shows the log of process 0 until the run ends, and asks for new slices when
# they are taken away. The run is the hosts' start-up script: it goes on when this one is interrupted.
#
#   run.sh         starts the run, or follows the one that is there
#   run.sh stop    ends it and gives the slices back
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# settings

# cloud.sh

# Of the request; NONE when there is none. Fails when nobody can tell.
state() {
  local found
  found=$(gcloud compute tpus queued-resources list --zone="$ZONE" --filter="name~/$NAME\$" --format='value(state.state)') || return
  echo "${found:-NONE}"
}

start() {
  ship
  gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" "${CREATE[@]}" --metadata-from-file=startup-script=host.sh
}

follow() {
  gcloud compute tpus tpu-vm ssh "$NODE" --zone="$ZONE" --worker=0 --command="$(watch)"
}

stop() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
state >/dev/null # no login, no project: better now than in the loop, which is patient
last=""
while true; do
  now=$(state) || now="cannot be asked"
  [ "$now" = "$last" ] || say "$now"
  last=$now
  case $now in
    NONE) start ;;
    ACTIVE)
      code=0
      follow || code=$?
      # 143 and 255 are a host that goes away: the state will tell.
      [ "$code" -eq 143 ] || [ "$code" -eq 255 ] || finish "$code"
      sleep 15
      ;;
    SUSPENDING | SUSPENDED)
      say "preempted: asking again; the run resumes"
      stop
      ;;
    FAILED)
      gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" >&2
      fail "the request has failed, as described above; withdraw it with: bash $PWD/run.sh stop"
      ;;
    *) sleep 15 ;;
  esac
done
