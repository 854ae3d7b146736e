#!/usr/bin/env bash
# Every host of a cluster runs this: it unpacks the archive of the code, installs what it needs, and trains.
#
#   host.sh            all of it
#   host.sh prepare    only unpacks and installs
#   host.sh train      only trains
#
# Training ends with 0 (done), 2 (a mistake that only the user can mend), 143 (asked to stop, and saved) or another code (a
# failure). RESTARTS is how often a failed run is started again here, counted anew when it has lasted an hour; empty where the
# engine itself does it.
set -euo pipefail
# settings
export ACCELERATOR HOME="${HOME:-/root}" # the start-up scripts of machines have no HOME
readonly CODE=$DIRECTORY/$REVISION

say() {
  printf '%s: %s\n' "$(hostname)" "$*" >&2
}

prepare() {
  [ -e "$CODE" ] || unpack
  [ -z "$FETCH_PYTHON" ] || fetch_python
  "$CODE/launch/local.sh" install
}

unpack() {
  say "unpacking $ARCHIVE into $CODE"
  rm -rf "$CODE.partial"
  mkdir -p "$CODE.partial"
  case $ARCHIVE in
    gs://*) gcloud storage cat "$ARCHIVE" ;;
    *) cat "$ARCHIVE" ;;
  esac | tar --extract --gzip --directory="$CODE.partial"
  mv "$CODE.partial" "$CODE"
}

# The images of most TPU VMs carry Python 3.10: uv brings one that is new enough.
fetch_python() {
  local uv=$DIRECTORY/bin/uv
  [ -x "$uv" ] || curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$DIRECTORY/bin" UV_NO_MODIFY_PATH=1 sh
  export UV_PYTHON_PREFERENCE=only-managed UV_PYTHON_INSTALL_DIR="$DIRECTORY/python"
  "$uv" python install 3.12
  PYTHON=$("$uv" python find 3.12)
  export PYTHON
}

train() {
  local code began failures=0 arguments=("${TRAIN[@]}" "--workdir=$WORKDIR")
  # SkyPilot tells machines with GPUs of one another; TPUs, GKE and Slurm are found by JAX itself.
  if [ "$ACCELERATOR" = cuda ] && [ "${SKYPILOT_NUM_NODES:-1}" -gt 1 ]; then
    arguments+=("--coordinator=${SKYPILOT_NODE_IPS%%$'\n'*}:8476" "--num_processes=$SKYPILOT_NUM_NODES")
    arguments+=("--process_id=$SKYPILOT_NODE_RANK")
  fi
  # Here hosts come one by one, and a slice may be made anew while the others wait.
  [ -z "$RESTARTS" ] || arguments+=("--give_up_after=86400")
  cd "$CODE"
  while true; do
    code=0
    began=$SECONDS
    run .venv/bin/python -m launch.train "${arguments[@]}" || code=$?
    if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ -z "$RESTARTS" ] || [ -n "$stopping" ]; then return "$code"; fi
    [ $((SECONDS - began)) -lt 3600 ] || failures=0
    if [ "$code" -ne 143 ]; then
      [ "$failures" -lt "$RESTARTS" ] || return "$code"
      failures=$((failures + 1))
    fi
    say "training ended with exit code $code; it resumes (failure $failures of $RESTARTS)"
    sleep 10
    [ -z "$stopping" ] || return 143
  done
}

# Runs a command and gives its exit code. A SIGTERM is handed on to it, and after that nothing is started again.
run() {
  local child code=0
  "$@" &
  child=$!
  trap 'stopping=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # the signal has ended the wait, and not yet the command
    code=0
    wait "$child" || code=$?
  done
  return "$code"
}

stopping=""
if [ -n "$LOG" ]; then
  exec >>"$LOG" 2>&1
  rm -f "$LOG.code"
  echo "$BASHPID" >"$LOG.pid"
  trap 'echo "$?" >"$LOG.code"' EXIT
fi
case ${1:-all} in
  all)
    prepare
    train
    ;;
  prepare) prepare ;;
  train) train ;;
esac
