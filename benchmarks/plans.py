"""What the published experiments need: the smallest slice that each fits on, and the least time of a step there.

    PYTHONPATH=. python benchmarks/plans.py [--only=llava] [--minutes=60]   # compiles what is missing, writes docs/plans.md
    PYTHONPATH=. python benchmarks/plans.py --minutes=0                     # writes docs/plans.md from what is there
    PYTHONPATH=. python benchmarks/plans.py --scaling [--minutes=60]        # the weak-scaling table

Every row is one call of `launch.plan`, which compiles the step with the TPU's own compiler and no TPU; a compile takes one to
three minutes of a CPU. Slices that the state alone fills are passed over on paper. What has been compiled is kept in
docs/plans.json, so that the command may be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launch.command import load_config
from mmjax.parallel.topology import parse_topology, prepare
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from mmjax.types.config import from_config

CACHE, PAGE = Path("docs/plans.json"), Path("docs/plans.md")
SIXTEEN = ("v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16")  # as many devices as BLIP-2's authors had, and more
LADDER = ("v5e:2x2", "v5e:2x4", *SIXTEEN)
KEPT = (
    "fits", "mesh", "hbm_bytes_per_chip", "hbm_limit_bytes", "useful_flops_per_step", "hardware_flops_per_step",
    "roofline_seconds", "roofline", "collectives", "collectives_read", "compile_seconds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the page.

    Args:
      title: what a reader looks for.
      config: "FILE[:argument]" below experiments/.
      topologies: to try in this order until one fits.
      flags: overrides.
    """

    title: str
    config: str
    topologies: tuple[str, ...] = LADDER
    flags: tuple[str, ...] = ()


ENTRIES = (
    Entry("LLaVA-1.5-7B, projector", "llava/pretrain.py"),
    Entry("LLaVA-1.5-7B, LoRA", "llava/finetune_lora.py"),
    Entry("LLaVA-1.5-7B, full", "llava/finetune.py"),
    Entry("LLaVA-1.5-7B, full", "llava/finetune.py", ("v6e:2x4",)),
    Entry("LLaVA-1.5-7B, full", "llava/finetune.py", ("v5p:2x2x2",)),
    Entry("LLaVA-1.5-7B, full", "llava/finetune.py", ("v5e:16x16",)),
    Entry("LLaVA-1.5-13B, projector", "llava/pretrain.py:size=13b"),
    Entry("LLaVA-1.5-13B, LoRA", "llava/finetune_lora.py:size=13b"),
    Entry("LLaVA-1.5-13B, full", "llava/finetune.py:size=13b"),
    Entry("BLIP-2 stage 1, ViT-g", "blip2/stage1.py", SIXTEEN),
    Entry("BLIP-2 stage 1, ViT-L", "blip2/stage1.py:encoder=clip_l", SIXTEEN),
    *(
        Entry(f"BLIP-2 stage 2, {name}", f"blip2/stage2.py:llm={llm}", SIXTEEN)
        for name, llm in (
            ("OPT-2.7B", "opt_2_7b"), ("OPT-6.7B", "opt_6_7b"), ("Flan-T5-XL", "flan_t5_xl"), ("Flan-T5-XXL", "flan_t5_xxl"),
        )
    ),
    Entry("InstructBLIP, Vicuna-7B", "instructblip/instruct.py:llm=vicuna_7b", SIXTEEN),
    Entry("InstructBLIP, Vicuna-13B", "instructblip/instruct.py:llm=vicuna_13b", SIXTEEN),
    Entry("MiniGPT-4 stage 1, Vicuna-7B", "minigpt4/stage1.py:llm=vicuna_7b"),
    Entry("MiniGPT-4 stage 1, Vicuna-13B", "minigpt4/stage1.py"),
)  # fmt: skip

# The same rows for every 16 chips: LLaVA-1.5-7B, LoRA and full, two rows of 3,840 positions on each chip.
SCALING = tuple(
    Entry(f"LLaVA-1.5-7B, {name}", f"llava/{config}.py", (topology,), (f"--config.stages.finetune.data.rows={2 * chips}",))
    for name, config in (("LoRA", "finetune_lora"), ("full", "finetune"))
    for topology, chips in (("v5e:4x4", 16), ("v5e:16x16", 256), ("v5e:16x16*2", 512))
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression over the rows' titles and configs")
    parser.add_argument("--minutes", type=float, default=600, help="after which no other compile is begun")
    parser.add_argument("--scaling", action="store_true", help="the weak-scaling table instead of the recipes")
    return parser.parse_args()


def key(entry: Entry, topology: str) -> str:
    return " ".join((entry.config, topology, *entry.flags))


def holds_the_state(entry: Entry, topology: str) -> bool:
    """Whether what no compiler can save fits, by `mmjax.training.plan.search`."""
    from mmjax.training.plan.search import as_it_is
    from mmjax.training.plan.stage_plan import RESERVE

    experiment = from_config(Experiment, load_config(f"experiments/{entry.config}"))
    stage, parsed = list(experiment.stages.values())[-1], parse_topology(topology)
    try:
        return as_it_is(experiment, stage, parsed).least <= (1 - RESERVE) * parsed.chip.memory
    except UserError:
        return False  # its rows or widths do not divide over these devices


def compile_entry(entry: Entry, topology: str) -> dict[str, Any]:
    """One plan by the command that a user gives."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "plan.json"
        command = ["-m", "launch.plan", f"--config=experiments/{entry.config}", f"--topology={topology}", f"--json={file}"]
        done = subprocess.run([sys.executable, *command, *entry.flags], stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")
        plan = json.loads(file.read_text())
    return {name: plan[name] for name in KEPT}


def fill(entries: tuple[Entry, ...], cache: dict[str, Any], minutes: float) -> None:
    """Compiles what is missing; of each entry up to the first topology on which it fits."""
    began = time.monotonic()
    for entry in entries:
        for topology in entry.topologies:
            name = key(entry, topology)
            if name not in cache:
                if time.monotonic() - began >= 60 * minutes:
                    return
                possible = len(entry.topologies) == 1 or holds_the_state(entry, topology)
                cache[name] = compile_entry(entry, topology) if possible else {"fits": False}
                CACHE.write_text(json.dumps(cache, indent=1, sort_keys=True) + "\n")
                print(f"{name}: {'fits' if cache[name]['fits'] else 'does not fit'}")
            if cache[name]["fits"]:
                break


def table(entries: tuple[Entry, ...], cache: dict[str, Any]) -> list[str]:
    """The rows of what is known."""
    lines = [
        "| recipe | slice | mesh | GiB of a chip | useful / done TFLOP | s a step | bound |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        known = [cache.get(key(entry, topology)) for topology in entry.topologies]
        fitting = next((i for i, plan in enumerate(known) if plan is None or plan["fits"]), len(known))
        if fitting == len(known) or known[fitting] is None:
            continue  # the smallest one is not known yet
        topology, plan = entry.topologies[fitting], known[fitting]
        mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        memory = f"{plan['hbm_bytes_per_chip'] / 2**30:.1f} of {plan['hbm_limit_bytes'] / 2**30:.1f}"
        work = f"{plan['useful_flops_per_step'] / 1e12:,.0f} / {plan['hardware_flops_per_step'] / 1e12:,.0f}"
        time_, bound = f"{plan['roofline_seconds']:.2f}", plan["roofline"]["bound"]
        lines.append(f"| {entry.title} | `{topology}` | {mesh} | {memory} | {work} | {time_} | {bound} |")
    return lines


def scaling_table(cache: dict[str, Any]) -> list[str]:
    """GB that leave each chip in a step, by kind of link."""
    lines = [
        "| recipe | slice | mesh | GB from a chip over ICI | over DCN | s a step | bound |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in SCALING:
        (topology,) = entry.topologies
        plan = cache.get(key(entry, topology))
        if plan is None:
            continue
        parsed = parse_topology(topology)
        ici = plan["roofline"]["ici"] * parsed.link_rate / 1e9
        dcn = plan["roofline"]["dcn"] * parsed.chip.network_rate / 1e9
        mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        time_, bound = f"{plan['roofline_seconds']:.2f}", plan["roofline"]["bound"]
        lines.append(f"| {entry.title} | `{topology}` | {mesh} | {ici:.2f} | {dcn:.2f} | {time_} | {bound} |")
    return lines if len(lines) > 2 else ["Not compiled yet."]


def write_page(cache: dict[str, Any]) -> None:
    """Puts the tables between the marks of the page; what stands around them is written by hand."""
    page = PAGE.read_text()
    for mark, lines in (("recipes", table(ENTRIES, cache)), ("scaling", scaling_table(cache))):
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
        page = re.sub(pattern, lambda found, rows=lines: found[1] + "\n".join(rows) + "\n" + found[2], page, flags=re.DOTALL)
    PAGE.write_text(page)


def main() -> None:
    options = arguments()
    prepare(parse_topology("v5e:2x2"))
    cache = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    chosen = SCALING if options.scaling else ENTRIES
    entries = tuple(entry for entry in chosen if re.search(options.only, f"{entry.title} {entry.config}"))
    fill(entries, cache, options.minutes)
    write_page(cache)


if __name__ == "__main__":
    main()
