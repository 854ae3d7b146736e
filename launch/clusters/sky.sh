#!/usr/bin/env bash
# A managed job of SkyPilot: submits it and shows its log until the run ends. SkyPilot finds new machines after a preemption: this
# script may be interrupted.
#
#   run.sh         starts the run, or follows the one that is there
#   run.sh stop    ends it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# settings

if [ "${1:-}" = stop ]; then
  exec sky jobs cancel --yes --name "$NAME"
fi
if sky jobs queue --skip-finished | grep -qw -- "$NAME"; then
  exec sky jobs logs --name "$NAME"
fi
exec sky jobs launch --yes --name "$NAME" sky.yaml
