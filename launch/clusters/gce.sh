#!/usr/bin/env bash
# A TPU slice as a managed instance group: makes the group, shows the logs of its hosts until the run ends, and makes it anew
# when hosts are taken away. The run is the hosts' start-up script: it goes on when this one is interrupted.
#
#   run.sh         starts the run, or follows the one that is there
#   run.sh stop    ends it and deletes the group
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# settings

# cloud.sh

# "NAME STATUS" of every host; nothing when there is no group. Fails when nobody can tell.
hosts() {
  local group
  group=$(gcloud compute instance-groups managed list --zones="$ZONE" --filter="name=$NAME" --format='value(name)') || return
  if [ -n "$group" ]; then
    gcloud compute instance-groups managed list-instances "$NAME" --zone="$ZONE" --format='value(name,instanceStatus)'
  fi
}

# "4 RUNNING", or "1 RUNNING 3 STAGING".
state() {
  hosts | awk '{ print ($2 ? $2 : "WAITING") }' | sort | uniq -c | xargs
}

start() {
  ship
  local slice=()
  gcloud compute instance-templates create "$NAME" "${TEMPLATE[@]}" --metadata-from-file=startup-script=host.sh
  if [ "$HOSTS" -gt 1 ]; then # the hosts of a slice come all together or not at all, and none is replaced alone
    gcloud compute resource-policies create workload-policy "$NAME" --region="$REGION" --type=HIGH_THROUGHPUT \
      --accelerator-topology="$SHAPE"
    slice=(--workload-policy="projects/$(gcloud config get-value project)/regions/$REGION/resourcePolicies/$NAME"
      --target-size-policy-mode=bulk)
  fi
  gcloud compute instance-groups managed create "$NAME" --zone="$ZONE" --template="$NAME" --size="$HOSTS" \
    --default-action-on-vm-failure=do-nothing ${slice[@]+"${slice[@]}"}
}

# All hosts at once, each line with the host's name. Which of them is process 0 is not known here.
follow() {
  local host follower code result=0 followers=()
  for host in $(hosts | awk '{ print $1 }'); do
    gcloud compute ssh "$host" --zone="$ZONE" --command="$(watch)" | awk -v host="$host" '{ print host ": " $0; fflush() }' &
    followers+=("$!")
  done
  for follower in "${followers[@]}"; do
    code=0
    wait "$follower" || code=$?
    [ "$code" -le "$result" ] || result=$code
  done
  return "$result"
}

stop() { # all of it, also when a part is not there
  local code=0
  gcloud compute instance-groups managed delete "$NAME" --zone="$ZONE" --quiet || code=1
  gcloud compute instance-templates delete "$NAME" --quiet || code=1
  [ "$HOSTS" -eq 1 ] || gcloud compute resource-policies delete "$NAME" --region="$REGION" --quiet || code=1
  return "$code"
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
state >/dev/null # no login, no project: better now than in the loop, which is patient
last=""
while true; do
  now=$(state) || now="cannot be asked"
  [ "$now" = "$last" ] || say "${now:-no group}"
  last=$now
  case $now in
    "") start ;;
    "$HOSTS RUNNING")
      code=0
      follow || code=$?
      # 143 and 255 are a host that goes away: the state will tell.
      [ "$code" -eq 143 ] || [ "$code" -eq 255 ] || finish "$code"
      sleep 15
      ;;
    *STOP* | *TERMINATED* | *SUSPEND* | *DEPROVISIONING*)
      say "hosts were taken away: making the group anew; the run resumes"
      stop
      ;;
    *) sleep 15 ;;
  esac
done
