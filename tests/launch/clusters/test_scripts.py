"""The scripts, really run: in a world where the engines' programs are small fakes, and a bucket is a directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters import archive
from launch.clusters.engines import fill
from launch.clusters.job import Job
from launch.clusters.slices import parse

ROOT = Path(__file__).parents[3]
GCLOUD = shutil.which("gcloud")

# Stands for Python. `launch.train` takes the next of the words in `plan`: an exit code, or what happens to the machine.
PYTHON = """#!/bin/bash
asked="$*"
case "$asked" in
  *platform*) echo 3.12.1 ;;
  -c*) exit 0 ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip"*) echo "pip ${asked#*version-check }" >> "$WORLD/calls" ;;
  "-m launch.train"*)
    read -r next < "$WORLD/plan"
    sed -i 1d "$WORLD/plan"
    echo "train ${asked#*launch.train }" >> "$WORLD/calls"
    echo "training in $PWD: $next"
    case $next in
      preempted) echo SUSPENDED > "$WORLD/state"; kill -9 $PPID ;;
      taken) sed -i s/RUNNING/TERMINATED/ "$WORLD/state"; kill -9 $PPID ;;
      signal) trap 'echo saved; exit 143' TERM; touch "$WORLD/training"; while true; do /bin/sleep 0.05; done ;;
      *) exit "$next" ;;
    esac
    ;;
esac
"""
PROGRAMS = {
    "sleep": "exec /bin/sleep 0.05",
    "tail": 'exec /usr/bin/tail --sleep-interval=0.05 "$@"',
    "curl": 'echo \'mkdir -p "$UV_INSTALL_DIR"; cp "$WORLD/bin/uv" "$UV_INSTALL_DIR/uv"\'',
    "uv": '[ "$2" = install ] || echo "$WORLD/bin/python3"',
    "gcloud": """
printf '%s\\0' "$@" >> "$WORLD/words"
printf '\\n\\0' >> "$WORLD/words"
asked="$*"
case "$asked" in
  "config get-value project") echo project ;;
  "storage buckets describe gs://bucket") [ -d "$WORLD/bucket" ] ;;
  "storage cp "*) mkdir -p "$(dirname "$WORLD/${4#gs://}")"; cp "$3" "$WORLD/${4#gs://}" ;;
  "storage cat "*) cat "$WORLD/${3#gs://}" ;;
  *" tpu-vm ssh "*) bash -c "${asked#*--command=}" ;;
  *" ssh "*) command=${asked#*--command=}; bash -c "${command/log\\/only/log\\/$3}" ;;
  *"queued-resources list"*) cat "$WORLD/state" 2>/dev/null || true ;;
  *"queued-resources create"*) echo ACTIVE > "$WORLD/state"; bash host.sh & ;;
  *"managed list "*) [ ! -e "$WORLD/state" ] || echo r ;;
  *"list-instances"*) cat "$WORLD/state" ;;
  *"managed create"*)
    for VM in a b; do
      echo "$VM RUNNING" >> "$WORLD/state"
      VM=$VM bash host.sh &
      [[ "$asked" != *--size=1* ]] || break
    done
    ;;
  *"queued-resources delete"* | *"managed delete"*) rm -f "$WORLD/state" "$WORLD"/log/*/*.pid ;;
esac""",
    "kubectl": """
case "$*" in
  "get jobset"*terminalState*) [ ! -e "$WORLD/jobset" ] || echo "r $(cat "$WORLD/jobset")" ;;
  "get jobset"*) echo "the job has failed" ;;
  "create"*) touch "$WORLD/jobset" ;;
  "get pods"*exitCode*) cat "$WORLD/exit" ;;
  "get pods"*) printf "r-slice-0-0-old Failed\\nr-slice-0-0-new Running\\n" ;;
  "logs --follow --container=train r-slice-0-0-new") echo "step 1"; cat "$WORLD/end" > "$WORLD/jobset" ;;
  "delete"*) rm "$WORLD/jobset" ;;
esac""",
    "sbatch": """
echo 7
export SLURM_JOB_ID=7
echo "$PWD" > "$WORLD/job"
bash slurm_batch.sh >> "$WORLD/shared/r/code/slurm-7.log" 2>&1 &""",
    "srun": 'shift; exec "$@"',
    "scontrol": 'cd "$(cat "$WORLD/job")"; exec bash slurm_batch.sh',
    "squeue": '[ ! -e "$WORLD/job" ] || echo 7',
    "scancel": 'rm "$WORLD/job"',
    "sky": '[ "$*" != "jobs queue --skip-finished" ] || cat "$WORLD/state" 2>/dev/null',
}


# Directories of machines -> where they are here.
MOVED = {
    "/var/log/": "$WORLD/log/$VM/",
    "/opt/mmjax": "$WORLD/opt/$VM/mmjax",
    "/tmp/mmjax": "$WORLD/opt/sky/mmjax",
    "/shared/": "$WORLD/shared/",
    "/code/archive": "$WORLD/code/archive",
    "DIRECTORY=/code": "DIRECTORY=$WORLD/code",
}


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[Path]:
    """A directory with the programs of all engines, and a checkout to ship. No process that it started outlives the test."""
    (tmp_path / "bin").mkdir()
    for name, text in {**PROGRAMS, "python3": PYTHON}.items():
        called = f'echo "{name} $*" >> "$WORLD/calls"\n' if name not in ("sleep", "tail", "python3", "squeue") else ""
        path = tmp_path / "bin" / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{called}{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("WORLD", str(tmp_path))
    monkeypatch.setenv("VM", "only")
    (tmp_path / "bucket").mkdir()
    (tmp_path / "checkout/launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/local.sh", tmp_path / "checkout/launch/local.sh")
    for file in ("requirements.txt", "requirements-tpu.txt", "requirements-cuda.txt"):
        (tmp_path / "checkout" / file).write_text(file)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], cwd=tmp_path / "checkout", check=True)
    yield tmp_path
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # not ours, or gone meanwhile
            if f"WORLD={tmp_path}\0".encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def launched(world: Path, engine: str, topology: str, plan: str = "", **fields: Any) -> subprocess.CompletedProcess:
    """Runs a launcher to its end, with the directories of machines moved into the world."""
    code = archive.find(world / "checkout", dirty=False)
    workdir = "/shared/r" if engine == "slurm" else "gs://bucket/r"
    job = Job("r", parse(topology), workdir, ("--config=c d.py",), code.revision, **fields)
    archive.write(world / "checkout", code, world / "run")
    (world / "plan").write_text("".join(f"{word}\n" for word in plan.split()))
    for vm in ("only", "a", "b"):
        (world / "log" / vm).mkdir(parents=True, exist_ok=True)
    for file, text in fill(engine, job).items():
        for there, here in MOVED.items():
            text = text.replace(there, here.replace("$WORLD", str(world)))
        (world / "run" / file).write_text(text)
    return run(world)


def run(world: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", world / "run/run.sh", *arguments], capture_output=True, text=True, timeout=120)


def calls(world: Path, program: str) -> list[str]:
    lines = (world / "calls").read_text().splitlines()
    return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


TPU_VM = {"zone": "z"}


def test_a_host_unpacks_the_commit_installs_and_trains(world):
    done = launched(world, "tpu_vm", "v5e:4x4", "0", **TPU_VM)
    assert done.returncode == 0, done.stderr
    revision = archive.find(world / "checkout", dirty=False).revision
    assert (world / f"opt/only/mmjax/{revision}/launch/local.sh").read_text() == (ROOT / "launch/local.sh").read_text()
    assert calls(world, "pip") == ["--requirement=requirements.txt --requirement=requirements-tpu.txt"]
    assert calls(world, "train") == ["--config=c d.py --workdir=gs://bucket/r --give_up_after=86400"]
    assert f"training in {world}/opt/only/mmjax/{revision}: 0\n" in done.stdout, "the log is shown here"
    assert calls(world, "gcloud")[-1] == "compute tpus queued-resources delete r --zone=z --force --quiet"


@pytest.mark.parametrize(
    ("plan", "fields", "code", "times"),
    [
        ("143 1 143 0", {}, 0, 4),
        ("2", {}, 2, 1),
        ("1 1 134 1 0", {}, 1, 4),
        ("143 1", {"restarts": 0}, 1, 2),
    ],
)
def test_the_exit_code_says_whether_training_resumes(world, plan, fields, code, times):
    done = launched(world, "tpu_vm", "v5e:4x4", plan, **TPU_VM, **fields)
    assert done.returncode == code
    assert len(calls(world, "train")) == times
    assert f"r: the run has ended with exit code {code}" in done.stderr


def test_failures_are_counted_anew_after_an_hour(world):
    launched(world, "tpu_vm", "v5e:4x4", "0", **TPU_VM)
    host = world / "run/host.sh"
    host.write_text(host.read_text().replace("-lt 3600", "-lt 0"))
    (world / "plan").write_text("1\n" * 6 + "0\n")
    assert run(world).returncode == 0
    assert len(calls(world, "train")) == 1 + 7


def test_slices_that_are_taken_away_are_asked_for_again(world):
    done = launched(world, "tpu_vm", "v5e:4x4*2", "preempted 0", **TPU_VM, spot=True)
    assert done.returncode == 0, done.stderr
    made = [call.split()[3:] for call in calls(world, "gcloud") if "queued-resources create" in call]
    assert len(made) == 2 and made[0] == made[1]
    assert {"--node-prefix=r", "--node-count=2", "--spot", "--accelerator-type=v5litepod-16"} < set(made[0])
    assert "r: preempted: asking again; the run resumes" in done.stderr
    assert len(calls(world, "train")) == 2


def test_a_missing_bucket_is_named(world):
    (world / "bucket").rmdir()
    done = launched(world, "tpu_vm", "v5e:4x4", **TPU_VM)
    assert done.returncode == 2
    assert (
        "error: --workdir=gs://bucket/r: gs://bucket cannot be read; make it with: gcloud storage buckets create" in done.stderr
    )


def test_the_machines_stay_when_asked_to_and_stop_gives_them_back(world):
    done = launched(world, "tpu_vm", "v5e:4x4", "0", **TPU_VM, keep=True)
    assert done.returncode == 0 and not any("delete" in call for call in calls(world, "gcloud"))
    assert f"give them back with: bash {world}/run/run.sh stop" in done.stderr
    assert run(world, "stop").returncode == 0
    assert calls(world, "gcloud")[-1] == "compute tpus queued-resources delete r --zone=z --force --quiet"


def test_a_machine_that_shuts_down_lets_training_save_and_starts_nothing(world):
    launched(world, "tpu_vm", "v5e:4x4", "0", **TPU_VM)
    (world / "plan").write_text("signal\n0\n")
    host = subprocess.Popen(["bash", world / "run/host.sh"])
    while not (world / "training").exists():
        assert host.poll() is None
    host.send_signal(signal.SIGTERM)
    assert host.wait(timeout=120) == 143
    assert (world / "log/only/mmjax.log").read_text().endswith("saved\n")
    assert (world / "plan").read_text() == "0\n"


@pytest.mark.parametrize("plan", ["0 0", "taken taken 0 0"])
def test_an_instance_group(world, plan):
    done = launched(world, "gce", "v6e:2x4", "0", zone="us-east5-a")
    assert done.returncode == 0, done.stderr
    os.truncate(world / "calls", 0)
    done = launched(world, "gce", "tpu7x:2x2x2", plan, zone="us-east5-a")
    assert done.returncode == 0, done.stderr
    times = len(plan.split()) // 2
    made = [call for call in calls(world, "gcloud") if "create" in call]
    assert [call.split()[1] for call in made] == ["instance-templates", "resource-policies", "instance-groups"] * times
    assert "--accelerator-topology=2x2x2" in made[1]
    assert "--size=2" in made[2] and "--workload-policy=projects/project/regions/us-east5/resourcePolicies/r" in made[2]
    assert len(calls(world, "train")) == 2 * times
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} == {"a", "b"}, "each line tells its host"
    assert [call.split()[1] for call in calls(world, "gcloud") if "delete" in call][-1] == "resource-policies"


@pytest.mark.parametrize(("end", "exit_code", "code"), [("Completed", "", 0), ("Failed", "2", 2), ("Failed", "\n", 1)])
def test_a_jobset_is_followed_to_its_end(world, end, exit_code, code):
    (world / "end").write_text(end)
    (world / "exit").write_text(exit_code)
    done = launched(world, "gke", "v5e:4x4", queue="q")
    assert done.returncode == code, done.stderr
    assert done.stdout == "step 1\n"
    assert (world / "bucket/r/code").is_dir(), "the archive is in the bucket"
    assert "create --filename=gke.yaml" in calls(world, "kubectl")
    assert ("the job has failed" in done.stderr) == (end == "Failed")
    run(world)
    assert "delete jobset r" in calls(world, "kubectl"), "the same command again starts it again"


@pytest.mark.parametrize("code", [2, 143])
def test_a_pod_trains_once_and_gives_the_exit_code(world, code):
    (world / "end").write_text("Completed")
    launched(world, "gke", "v5e:4x4", f"{code} 0", queue="q")
    [slices] = yaml.safe_load((world / "run/gke.yaml").read_text())["spec"]["replicatedJobs"]
    [container] = slices["template"]["spec"]["template"]["spec"]["containers"]
    (world / "code").mkdir()
    shutil.copy(next((world / "bucket/r/code").iterdir()), world / "code/archive.tar.gz")
    done = subprocess.run(container["command"], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert calls(world, "train") == ["--config=c d.py --workdir=gs://bucket/r"]


@pytest.mark.parametrize(("plan", "code", "times"), [("143 1 143 0", 0, 4), ("2", 2, 1), ("1 1 1 1 0", 1, 4)])
def test_a_slurm_job_goes_back_into_the_queue(world, plan, code, times):
    done = launched(world, "slurm", "h100:8*4", plan, options=("--time=60",))
    assert done.returncode == code, done.stderr
    assert len(calls(world, "train")) == times
    assert done.stdout.count("training in") == times, "the log is shown here"
    assert calls(world, "pip") == ["--requirement=requirements.txt --requirement=requirements-cuda.txt"]
    [submitted] = calls(world, "sbatch")
    assert {"--job-name=r", "--nodes=4", "--gpus-per-node=h100:8", "--time=60", "slurm_batch.sh"} < set(submitted.split())


def test_a_sky_job_is_submitted_once_and_its_machines_know_each_other(world, monkeypatch):
    assert launched(world, "sky", "h100:8*2", "1 0").returncode == 0
    (world / "state").write_text("1  r  RUNNING\n")
    run(world)
    run(world, "stop")
    assert [call.split()[1] for call in calls(world, "sky")] == ["queue", "launch", "queue", "logs", "cancel"]
    task = yaml.safe_load((world / "run/sky.yaml").read_text())
    [(mounted, source)] = task["file_mounts"].items()
    Path(mounted).parent.mkdir(parents=True)
    shutil.copy(world / "run" / source, mounted)
    for name, value in {"NUM_NODES": "2", "NODE_RANK": "1", "NODE_IPS": "10.0.0.1\n10.0.0.2"}.items():
        monkeypatch.setenv(f"SKYPILOT_{name}", value)
    done = subprocess.run(["bash", "-c", task["run"]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    processes = "--coordinator=10.0.0.1:8476 --num_processes=2 --process_id=1 --give_up_after=86400"
    assert calls(world, "train") == [f"--config=c d.py --workdir=gs://bucket/r {processes}"] * 2


@pytest.mark.heavy
@pytest.mark.skipif(GCLOUD is None, reason="the Google Cloud CLI is not installed")
def test_gcloud_knows_every_command_and_flag(world, monkeypatch):
    """The calls of the scripts, given to the real program: it takes them all, but nobody is logged in."""
    launched(world, "tpu_vm", "v5e:4x4", "0", zone="us-west4-a")
    launched(world, "tpu_vm", "v5e:4x4*2", "preempted 0", zone="us-west4-a", spot=True)
    launched(world, "gce", "tpu7x:2x2x2", "0 0", zone="us-central1-c", spot=True)
    asked = {tuple(call.split("\0")[:-1]) for call in (world / "words").read_text().split("\n\0") if call}
    assert len(asked) > 15
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(world / "nobody"))
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "project")
    for words in sorted(asked):
        done = subprocess.run([GCLOUD, *words], cwd=world / "run", capture_output=True, text=True, timeout=120)
        newer = "--target-size-policy-mode flag is available in one or more alternate release tracks" in done.stderr
        assert done.returncode == 0 or "do not currently have an active account" in done.stderr or newer, (words, done.stderr)


@pytest.mark.heavy
def test_a_host_really_trains_saves_and_resumes(tmp_path, monkeypatch, checkout):
    """No fake but the engine: the archive of this checkout, the real `launch.train`, and a SIGTERM in the middle of it."""
    code = archive.find(checkout, dirty=True)
    settings = ("--config.stages.lm.steps=60", "--config.stages.lm.log_every=1")
    train = ("--config=experiments/blip2/shapes.py", "--stage=lm", *settings)
    job = Job("r", parse("gpu:1"), "/shared/r", train, code.revision)
    host = tmp_path / "host.sh"
    host.write_text(fill("slurm", job)["host.sh"].replace("/shared/", f"{tmp_path}/shared/"))
    unpacked = tmp_path / "shared/r/code" / code.revision
    unpacked.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", archive.write(checkout, code, tmp_path), "-C", unpacked], check=True)
    (unpacked / ".venv").symlink_to(Path(sys.executable).parents[1])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    prepare = [sys.executable, "-m", "launch.prepare", "--dataset=shapes", "--out=data/shapes", "--limit=300"]
    subprocess.run(prepare, cwd=unpacked, check=True)

    def steps() -> list[int]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [json.loads(line)["step"] for line in lines if '"train/loss"' in line]

    metrics = tmp_path / "shared/r/metrics.jsonl"
    process = subprocess.Popen(["bash", host, "train"])
    while len(steps()) < 5:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    before = steps()
    assert before == list(range(1, len(before) + 1)) and len(before) < 60
    assert subprocess.run(["bash", host, "train"], timeout=300).returncode == 0
    assert steps() == list(range(1, 61)), "the second call goes on where the first has saved"
