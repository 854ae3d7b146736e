"""What every launcher prints. To write it anew: `PYTHONPATH=. .venv/bin/python tests/launch/clusters/test_engines.py`."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters.engines import ENGINES, check_programs, fill
from launch.clusters.job import Job, default_name, train_arguments
from launch.clusters.slices import parse
from mmjax.types.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
TRAIN = ("--config=experiments/llava/finetune.py:size=7b", "--config.name=it's new")

JOBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gce-slice": ("gce", "tpu7x:4x4x4", {"zone": "us-central1-c", "options": ("--reservation=r",)}),
    "gce-host": ("gce", "v6e:2x2", {"zone": "us-east5-a", "spot": True, "keep": True}),
    "tpu_vm-slice": ("tpu_vm", "v4:2x2x2", {"zone": "us-central2-b", "restarts": 0}),
    "tpu_vm-slices": ("tpu_vm", "v5e:16x16*2", {"zone": "us-west4-a", "spot": True, "options": ("--network=n",)}),
    "gke-slice": ("gke", "v6e:4x4", {"queue": "lq"}),
    "gke-slices": ("gke", "v5p:4x4x8*2", {"queue": "lq", "spot": True, "image": "i:1", "restarts": 7}),
    "slurm-machines": ("slurm", "h100:8*4", {"workdir": "/shared/it's/llava", "options": ("--time=4:00:00", "--partition=p")}),
    "sky-slice": ("sky", "v6e:4x4", {"spot": True}),
    "sky-machines": ("sky", "h100:8*2", {}),
}


def job(topology: str, **fields: Any) -> Job:
    return Job(
        "llava-7b",
        parse(topology),
        **{"workdir": "gs://bucket/llava-7b", "train": TRAIN, "revision": "mmjax-0123456789ab", **fields},
    )


def files(name: str) -> dict[str, str]:
    engine, topology, fields = JOBS[name]
    return fill(engine, job(topology, **fields))


def shown(name: str) -> str:
    return "\n".join(f"==> {file} <==\n{text}" for file, text in files(name).items())


def test_every_engine_has_a_golden_file():
    assert {engine for engine, _, _ in JOBS.values()} == set(ENGINES)
    assert {path.stem for path in GOLDEN.iterdir()} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_what_is_printed(name):
    assert shown(name) == (GOLDEN / f"{name}.txt").read_text()


def test_every_script_passes_shellcheck(tmp_path):
    written = [ROOT / ".ci/run", *(path for path in ROOT.rglob("*.sh") if not {".venv", "runs"} & set(path.parts))]
    assert {ROOT / "launch/local.sh", ROOT / "launch/clusters/host.sh"} < set(written)
    for name in JOBS:
        for file, text in files(name).items():
            if file.endswith(".sh"):
                written.append(tmp_path / f"{name}-{file}")
                written[-1].write_text(text)
    done = subprocess.run([SHELLCHECK, *written], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_training_knows_the_flags_that_hosts_give_it():
    given = set(re.findall(r'"--(\w+)=', (ROOT / "launch/clusters/host.sh").read_text()))
    sources = [(ROOT / "launch" / file).read_text() for file in ("train.py", "processes.py")]
    assert given and given <= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "".join(sources)))


def jobset(name: str) -> dict[str, Any]:
    return yaml.safe_load(files(name)["gke.yaml"])


def test_the_jobset_has_the_fields_of_its_schema():
    """https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ and the Job and Pod of Kubernetes 1.31."""
    described = jobset("gke-slices")
    assert (described["apiVersion"], described["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert described["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lq"}
    spec = described["spec"]
    assert set(spec) <= {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "ttlSecondsAfterFinished"}
    rules = spec["failurePolicy"]["rules"]
    assert spec["failurePolicy"]["maxRestarts"] == 7 and all(re.fullmatch(r"[A-Za-z]\w*", rule["name"]) for rule in rules)
    assert [rule["action"] for rule in rules] == ["FailJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    [slices] = spec["replicatedJobs"]
    assert set(slices) == {"name", "replicas", "template"} and slices["replicas"] == 2
    hosts = slices["template"]["spec"]
    assert (hosts["parallelism"], hosts["completions"], hosts["backoffLimit"]) == (32, 32, 0)
    pod = hosts["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy wants it"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x8",
        "cloud.google.com/gke-spot": "true",
    }
    [train], [fetch] = pod["containers"], pod["initContainers"]
    assert train["resources"]["limits"] == {"google.com/tpu": 4} and train["image"] == "i:1"
    assert fetch["command"][3] == "gs://bucket/llava-7b/code/mmjax-0123456789ab.tar.gz"
    assert train["command"][:2] == ["bash", "-c"] and "$$" not in train["command"][2], "Kubernetes reads $$ as $"
    assert (
        "cloud.google.com/gke-spot"
        not in jobset("gke-slice")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    )


@pytest.mark.parametrize(
    ("reason", "message", "action"),
    [
        # What the Job controller says of a job whose pod failed (kubernetes/pkg/controller/job/pod_failure_policy.go).
        (
            "PodFailurePolicy",
            "Container train for pod d/p failed with exit code 2 matching FailJob rule at index 0",
            "FailJobSet",
        ),
        (
            "PodFailurePolicy",
            "Container train for pod d/p failed with exit code 143 matching FailJob rule at index 1",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "PodFailurePolicy",
            "Pod d/p has condition DisruptionTarget matching FailJob rule at index 2",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", "RestartJobSet"),
    ],
)
def test_the_jobset_restarts_by_exit_code(reason, message, action):
    described = jobset("gke-slice")["spec"]
    policy = described["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule.get("onExitCodes", {}).get("values") for rule in policy] == [[2], [143], None]

    def matches(rule: dict[str, Any]) -> bool:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        return reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns)

    taken = [rule["action"] for rule in described["failurePolicy"]["rules"] if matches(rule)]
    assert (taken or ["RestartJobSet"])[0] == action


def test_the_sky_task_has_the_fields_of_its_schema():
    """https://docs.skypilot.co/en/latest/reference/yaml-spec.html."""
    task = yaml.safe_load(files("sky-slice")["sky.yaml"])
    assert set(task) == {"name", "num_nodes", "resources", "file_mounts", "run"}
    assert task["resources"] == {
        "accelerators": "tpu-v6e-16",
        "accelerator_args": {"runtime_version": "v2-alpha-tpuv6e"},
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143]},
    }
    machines = yaml.safe_load(files("sky-machines")["sky.yaml"])
    assert machines["num_nodes"] == 2 and machines["resources"]["accelerators"] == "H100:8"
    assert "accelerator_args" not in machines["resources"]


GCS = {"workdir": "gs://bucket/r"}


@pytest.mark.parametrize(
    ("engine", "topology", "fields", "message"),
    [
        ("tpu_vm", "v5e:4x4", GCS, "--engine=tpu_vm needs --zone"),
        ("gke", "v5e:4x4", GCS, "--engine=gke needs --queue"),
        ("slurm", "h100:8", {"workdir": "/shared/r", "spot": True}, "--spot means nothing to --engine=slurm"),
        ("sky", "h100:8", {**GCS, "options": ("--x",)}, "--option means nothing to --engine=sky"),
        ("tpu_vm", "tpu7x:4x4x4", {**GCS, "zone": "z"}, "the Cloud TPU API has v4 to v6e; use --engine=gce or gke"),
        ("tpu_vm", "h100:8", {**GCS, "zone": "z"}, "the Cloud TPU API has v4 to v6e"),
        ("gce", "v5e:4x4", {**GCS, "zone": "z"}, "instance groups have v5p, v6e and tpu7x only"),
        ("gce", "v6e:4x4*2", {**GCS, "zone": "z"}, "--engine=gce runs one slice, not 2; use --engine=gke"),
        ("gke", "h100:8", {**GCS, "queue": "q"}, "--engine=gke runs TPUs"),
        ("slurm", "v5e:4x4", {"workdir": "/shared/r"}, "--engine=slurm runs GPUs"),
        ("sky", "gpu:8", GCS, "SkyPilot wants the type of the GPU"),
        ("sky", "v6e:4x4*2", GCS, "--engine=sky runs one slice"),
        (
            "sky",
            "h100:8",
            {"workdir": "/shared/r"},
            "--workdir=/shared/r is not shared between the hosts; name one in a bucket",
        ),
        ("sky", "h100:8", {"workdir": "gs://bucket"}, "expected gs://BUCKET/DIRECTORY"),
        ("slurm", "h100:8", {"workdir": "runs/r"}, "--workdir=runs/r is not shared between the hosts; give a full path"),
        ("slurm", "h100:8", {"workdir": "/tmp/r"}, "--workdir=/tmp/r is not shared between the hosts; give a full path"),
        ("slurm", "h100:8", GCS, "--workdir=gs://bucket/r is not shared between the hosts; give a full path"),
        ("sky", "h100:8", {**GCS, "name": "Upper"}, "--name=Upper: expected lower-case letters"),
        ("sky", "h100:8", {**GCS, "name": "n" * 64}, "64 characters, but here the engine allows 63; give a shorter --name"),
        ("gke", "v5e:16x16*12", {**GCS, "queue": "q", "name": "n" * 46}, "46 characters, but here the engine allows 45"),
    ],
)
def test_mistakes_are_one_line(engine, topology, fields, message):
    wanted = dataclasses.replace(job(topology), **fields)
    with pytest.raises(UserError) as error:
        fill(engine, wanted)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_program_that_is_not_here_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--engine=gke needs gcloud: install the Google Cloud CLI, https://.*; --print_only"):
        check_programs("gke")
    (tmp_path / "gcloud").write_text("#!/bin/sh\n")
    (tmp_path / "gcloud").chmod(0o755)
    check_programs("tpu_vm")
    with pytest.raises(UserError, match="needs kubectl: gcloud components install kubectl"):
        check_programs("gke")


@pytest.mark.parametrize(
    ("workdir", "name"),
    [("gs://b/runs/LLaVA_7b", "llava-7b"), ("/shared/2026-11/", "run-2026-11"), ("gs://b/x.y", "x-y")],
)
def test_a_run_is_called_after_its_workdir(workdir, name):
    assert default_name(workdir) == name


def test_what_training_gets_of_a_command_line():
    arguments = [
        "--engine=sky",
        "--config",
        "F.py:a",
        "--config.x=1",
        "--noconfig.y",
        "--spot",
        "--stage=s",
        "--config.z",
        "2",
        "--name=n",
    ]
    assert train_arguments(arguments) == ("--config=F.py:a", "--config.x=1", "--noconfig.y", "--stage=s", "--config.z=2")


if __name__ == "__main__":
    for name in JOBS:
        (GOLDEN / f"{name}.txt").write_text(shown(name))
