#!/usr/bin/env bash
# One machine, one command: makes .venv from the requirements once, then runs a verb.
#
#   launch/local.sh train [--config=F.py[:arg]] [--workdir=DIR] …   default: experiments/blip2/shapes.py into runs/shapes
#   launch/local.sh evaluate [--config=…] [--workdir=DIR]           the same defaults
#   launch/local.sh plan [--config=…] [--stage=S]                   what a run will do, without any data
#   launch/local.sh generate --image=F --prompt=… [--model=DIR]     default: the last run
#   launch/local.sh chat [--model=DIR] [--port=N]                   default: the last run
#   launch/local.sh serve [--model=DIR] [--template=T] …            an OpenAI-style endpoint; default: the last run
#   launch/local.sh convert | prepare | cluster …                   see python -m launch.VERB --help
#   launch/local.sh test [pytest arguments]
#   launch/local.sh install                                         only makes .venv, with what the tests need
#
# Paths are relative to the top of the repository. PYTHON=/path/to/python chooses the interpreter of a new .venv.
# ACCELERATOR=tpu or cuda installs JAX for it too; `install` then leaves out what only tests need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly DEFAULT_CONFIG=experiments/blip2/shapes.py
readonly ACCELERATOR=${ACCELERATOR:-}
readonly REQUIREMENTS=(requirements.txt ${ACCELERATOR:+"requirements-$ACCELERATOR.txt"})
readonly STAMP=.venv/.requirements UNFINISHED=.venv/.installing LOG=.venv/install.log

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The first interpreter that is new enough, or one line that says what there is and what to do.
find_python() {
  local name version found="" names=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for name in "${names[@]}"; do
    version=$("$name" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
    found+="${found:+, }$name is $version"
  done
  fail "mmjax needs Python 3.11 or newer; ${found:-there is no ${PYTHON:-python3} here}." \
    "Install one (for example: apt install python3.12 python3.12-venv) or name one: PYTHON=/path/to/python3.12 launch/local.sh …"
}

# Installs what the requirements files name, unless the stamp says that it is done. The stamp is written last; an
# installation that was interrupted leaves its mark and is started afresh. Two calls at once take turns.
install() {
  if command -v flock >/dev/null; then
    exec 9<launch/local.sh
    flock -n 9 || { echo "waiting for another call that is installing …" >&2 && flock 9; }
  fi
  install_files "$@"
  exec 9<&-
}

install_files() {
  local python want
  want=$(cat "$@" | cksum)
  if [ ! -e "$UNFINISHED" ] && .venv/bin/python -c '' 2>/dev/null && grep -qxF "$want" "$STAMP" 2>/dev/null; then return; fi
  if [ -e "$UNFINISHED" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    [ ! -e "$UNFINISHED" ] || echo "the last installation was interrupted: starting it afresh" >&2
    rm -rf .venv
    mkdir .venv
    touch "$UNFINISHED"
    "$python" -m venv .venv >"$LOG" 2>&1 || fail "$python cannot make a virtual environment: $(tail -n 1 "$LOG")" \
      "(on Debian and Ubuntu: apt install python3-venv)"
  fi
  touch "$UNFINISHED"
  echo "installing $* into .venv (once; a few minutes) …" >&2
  if ! .venv/bin/python -m pip install --disable-pip-version-check "${@/#/--requirement=}" >"$LOG" 2>&1; then
    tail -n 5 "$LOG" >&2
    fail "the installation failed; all of pip's output is in $LOG. Mend the cause and give the same command again"
  fi
  echo "$want" >>"$STAMP"
  rm "$UNFINISHED"
}

# The value of --NAME among the arguments, in either spelling; fails if it is not there.
flag() {
  local name=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --"$name"=*) echo "${1#*=}" && return ;;
      --"$name") echo "${2:-}" && return ;;
    esac
    shift
  done
  return 1
}

last_run() {
  cat runs/.last 2>/dev/null || fail "there is no run yet: launch/local.sh train makes one, or name a directory with --model=DIR"
}

[ -f "${REQUIREMENTS[${#REQUIREMENTS[@]} - 1]}" ] || fail "ACCELERATOR=$ACCELERATOR: expected tpu or cuda"
[ $# -gt 0 ] || fail "name a verb: train, evaluate, plan, generate, chat, serve, convert, prepare, cluster, test or install (see the top of launch/local.sh)"
verb=$1
shift
case $verb in
  train | evaluate)
    if ! config=$(flag config "$@"); then
      config=$DEFAULT_CONFIG
      set -- --config="$config" "$@"
    fi
    if ! workdir=$(flag workdir "$@"); then
      workdir=${config##*/}
      workdir=runs/$(printf '%s' "${workdir/.py/}" | tr -c '[:alnum:]._-' '-')
      set -- "$@" --workdir="$workdir"
    fi
    ;;
  generate | chat | serve)
    if ! flag model "$@" >/dev/null; then
      model=$(last_run)
      set -- --model="$model" "$@"
    fi
    ;;
  plan)
    flag config "$@" >/dev/null || set -- --config="$DEFAULT_CONFIG" "$@"
    ;;
  convert | prepare | cluster) ;;
  install | test)
    if [ "$verb" = install ] && [ -n "$ACCELERATOR" ]; then
      install "${REQUIREMENTS[@]}"
    else
      install "${REQUIREMENTS[@]}" requirements-test.txt
    fi
    [ "$verb" = test ] || exit 0
    exec .venv/bin/python -m pytest -n 2 "$@"
    ;;
  *) fail "no verb $verb; there is train, evaluate, plan, generate, chat, serve, convert, prepare, cluster, test and install" ;;
esac
install "${REQUIREMENTS[@]}"
if [ "$verb" = train ]; then
  mkdir -p runs
  echo "$workdir" >runs/.last
fi
exec .venv/bin/python -m "launch.$verb" "$@"
