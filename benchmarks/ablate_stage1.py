"""Does BLIP-2's stage 1 pay? Trains with and without it for the same time, and prints both.

    python benchmarks/ablate_stage1.py [--seed=0] [--out=runs/ablation] [--finished=runs/shapes]
    python benchmarks/ablate_stage1.py --zero_shot [--seed=0] [--out=runs/ablation]

The second run leaves stage 1 out and spends the seconds that it took, compilation included, on more steps of the last stage:
question answering, or with --zero_shot, as in the paper's own ablation, captions through soft tokens into a frozen language
model, which is then asked questions. Both are ordinary runs: they resume, and their workdirs hold reports. About 20 minutes on
2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CONFIG = "experiments/blip2/shapes.py"


def train(workdir: Path, config: str, *overrides: str) -> None:
    command = [sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}", *overrides]
    subprocess.run(command, check=True)


def lines(workdir: Path, stage: str) -> list[dict]:
    """The metrics lines of a stage."""
    read = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["stage"] == stage]


def spent(workdir: Path, stage: str, accounts: tuple[str, ...]) -> float:
    """Seconds that a stage has put on these accounts; the accounts of a run only grow."""

    def total(line: dict) -> float:
        return sum(line.get(f"seconds/{account}", 0.0) for account in accounts)

    stages = list(json.loads((workdir / "config.json").read_text())["stages"])
    before = stages[: stages.index(stage)]
    start = max((total(line) for name in before for line in lines(workdir, name)), default=0.0)
    return max(total(line) for line in lines(workdir, stage)) - start


def accuracies(workdir: Path) -> dict[str, float]:
    """The final accuracies of the run, with and without its pictures."""
    found = {}
    for name in ("test", "pairs"):
        numbers = json.loads((workdir / "eval" / f"{name}.json").read_text())
        found[name] = numbers["exact_match"]
        found[f"{name}, {numbers['control']['name']}"] = numbers["control"]["exact_match"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--finished", type=Path, help="a finished run with stage 1 and this seed, to save its half of the time")
    parser.add_argument("--zero_shot", action="store_true", help="ask after stage 2, without training on questions")
    options = parser.parse_args()

    seed, last = f"--config.seed={options.seed}", "stage2" if options.zero_shot else "vqa"
    variant = "zero_shot-" if options.zero_shot else ""
    with_stage1 = options.finished or options.out / f"{variant}with-{options.seed}"
    if options.finished is None:
        train(with_stage1, f"{CONFIG}:zero_shot" if options.zero_shot else CONFIG, seed)
    steps = json.loads((with_stage1 / "config.json").read_text())["stages"][last]["steps"]
    seconds = spent(with_stage1, "stage1", ("compile", "data", "step"))
    per_step = spent(with_stage1, last, ("data", "step")) / steps
    more = round(seconds / per_step)

    without = options.out / f"{variant}without-{options.seed}"
    argument = "stage1=false,zero_shot" if options.zero_shot else "stage1=false"
    train(without, f"{CONFIG}:{argument}", seed, f"--config.stages.{last}.steps={steps + more}")
    print(f"\nstage 1 took {seconds:.0f} s, the time of {more} steps of {last} (seed {options.seed})")
    for name, workdir, count in (("with stage 1", with_stage1, steps), ("without", without, steps + more)):
        shown = ", ".join(f"{split} {value:.3f}" for split, value in accuracies(workdir).items())
        print(f"{name:>13}: {count} steps of {last}, {shown}")


if __name__ == "__main__":
    main()
