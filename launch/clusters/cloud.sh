# shellcheck shell=bash
# What the scripts for Google Cloud share; stop() is theirs.

say() {
  printf '%s: %s\n' "$NAME" "$*" >&2
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Puts the archive of the code beside the run.
ship() {
  local bucket=${WORKDIR#gs://}
  bucket=gs://${bucket%%/*}
  gcloud storage buckets describe "$bucket" >/dev/null ||
    fail "--workdir=$WORKDIR: $bucket cannot be read; make it with: gcloud storage buckets create $bucket"
  gcloud storage cp "$REVISION.tar.gz" "$ARCHIVE"
}

# What shows the log of a host when it is run there; it ends when the run on it ends, with the same exit code.
watch() {
  echo "LOG=$LOG"
  cat <<'HOST'
until [ -e "$LOG.pid" ]; do sleep 5; done
tail --lines=+1 --follow=name --pid="$(cat "$LOG.pid")" "$LOG"
exit "$(cat "$LOG.code" 2>/dev/null || echo 255)"
HOST
}

# The run has ended with this exit code: gives the machines back, unless they are to stay.
finish() {
  say "the run has ended with exit code $1"
  if [ -n "$KEEP" ]; then
    say "the machines stay; give them back with: bash $PWD/run.sh stop"
  else
    stop
  fi
  exit "$1"
}
