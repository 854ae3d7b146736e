"""One process of a real run, which may send itself a signal: `pod.py STEP SIGNAL ARGUMENTS…`, ARGUMENTS as of launch.train.

The signal comes when the metrics of the step have arrived; STEP 0 sends none.
"""

from __future__ import annotations

import os
import runpy
import sys

from mmjax.training import guard


def main() -> None:
    step, signum = map(int, sys.argv[1:3])
    check = guard.check

    def checked(config, metrics, number, **options):
        if number == step:
            os.kill(os.getpid(), signum)
        check(config, metrics, number, **options)

    guard.check = checked
    sys.argv[1:3] = []
    runpy.run_module("launch.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
