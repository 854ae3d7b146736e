"""Every config under experiments/ resolves to its golden text, and each of its stages compiles on shapes alone."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from data_pipelines import BUILDERS
from experiments.instructblip.instruct import HELD_OUT
from mmjax.parallel.mesh import MESH_AXES
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble
from mmjax.training.stage import Experiment
from mmjax.training.step import lower_step, make_train_step
from mmjax.types import Batch, Media, Queries, Text
from mmjax.types.config import from_config, to_text

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"

PUBLISHED = ("blip2.stage1", "blip2.stage2", "blip2.vqa", "blip2.caption", "blip2.retrieval", "instructblip.instruct")
PUBLISHED += ("llava.pretrain", "llava.finetune", "llava.finetune_lora", "minigpt4.stage1", "minigpt4.stage2")

# Every config file with the arguments whose resolved form is kept; helpers without get_config are not configs.
CONFIGS = [
    ("blip2.shapes", ""),
    ("blip2.shapes", "long"),
    ("blip2.shapes", "stage1=false"),
    ("blip2.shapes", "zero_shot"),
    ("blip2.shapes", "llm=smollm2"),
    ("blip2.easy_vqa", ""),
    ("blip2.easy_vqa", "llm=smollm2"),
    ("blip2.stage1", ""),
    ("blip2.stage1", "encoder=clip_l,preset=upstream"),
    ("blip2.stage2", ""),
    ("blip2.stage2", "llm=flan_t5_xl,preset=upstream"),
    ("blip2.stage2", "llm=flan_t5_xl,tiny"),
    ("blip2.vqa", ""),
    ("blip2.vqa", "llm=flan_t5_xl"),
    ("blip2.vqa", "held_out"),
    ("blip2.caption", ""),
    ("blip2.retrieval", ""),
    ("blip2.retrieval", "preset=upstream"),
    ("blip2.retrieval", "flickr30k"),
    ("instructblip.instruct", ""),
    ("instructblip.instruct", "zero_shot"),
    ("instructblip.instruct", "llm=flan_t5_xl,tiny"),
    ("llava.pretrain", ""),
    ("llava.pretrain", "version=1.0"),
    ("llava.finetune", ""),
    ("llava.finetune", "size=13b,version=1.6"),
    ("llava.finetune", "version=1.6,tiny"),
    ("llava.finetune_lora", ""),
    ("minigpt4.stage1", ""),
    ("minigpt4.stage1", "llm=llama2_7b"),
    ("minigpt4.stage1", "llm=llama2_7b,tiny"),
    ("minigpt4.stage2", ""),
    ("minigpt4.stage2", "llm=llama2_7b"),
    ("minigpt4.stage2", "llm=vicuna_7b,preset=upstream"),
    *((module, "tiny") for module in PUBLISHED),
]


def resolve(module: str, arg: str) -> Experiment:
    return from_config(Experiment, importlib.import_module(f"experiments.{module}").get_config(arg))


def test_every_config_file_is_listed():
    files = {
        str(path.relative_to(ROOT / "experiments").with_suffix("")).replace("/", ".")
        for path in (ROOT / "experiments").rglob("*.py")
        if re.search(r"^def get_config", path.read_text(), re.MULTILINE)
    }
    assert files == {module for module, _ in CONFIGS}


@pytest.mark.parametrize(("module", "arg"), CONFIGS)
def test_golden_text(module, arg):
    """A changed default shows in review. To accept it: PYTHONPATH=. python tests/experiments/test_configs.py"""
    golden = GOLDEN / f"{module}{'-' + arg if arg else ''}.txt"
    assert golden.exists(), f"{golden} is missing; write it with PYTHONPATH=. python tests/experiments/test_configs.py"
    assert to_text(resolve(module, arg)) == golden.read_text()


@pytest.mark.parametrize(("module", "arg"), CONFIGS)
def test_data_are_what_launch_prepare_makes(module, arg):
    experiment = resolve(module, arg)
    sources = [source for stage in experiment.stages.values() for source in stage.data.mixture.values()]
    sources += [evaluation.source for evaluation in experiment.evaluations.values()]
    for source in sources:
        assert source.builder in BUILDERS and source.path == f"data/{source.builder}"


def test_questions_are_never_evaluated_where_they_are_learnt():
    for arg in ("", "held_out", "llm=flan_t5_xl"):
        experiment = resolve("blip2.vqa", arg)
        learnt = {(source.path, source.split) for source in experiment.stages["vqa"].data.mixture.values()}
        asked = experiment.evaluations["vqa"].source
        assert learnt and (asked.path, asked.split) not in learnt


def test_what_is_held_out_is_never_learnt():
    experiment = resolve("instructblip.instruct", "zero_shot")
    learnt = {source.path for source in experiment.stages["instruct"].data.mixture.values()}
    assert set(experiment.evaluations) == {"vqav2", "gqa", *HELD_OUT}
    assert not learnt & {experiment.evaluations[name].source.path for name in ("gqa", *HELD_OUT)}


def abstract_batch(stage) -> Batch:
    """The shapes of a stage's batches."""
    data = stage.data

    def array(*shape, dtype=np.int32):
        return np.zeros((data.rows, *shape), dtype)

    def rows(t):
        return Text(array(t), array(t), array(t, dtype=np.float32), array(t), array(t)) if t else None

    t, s, m, u, n = data.length, data.source_length, data.queries, data.query_length, data.media
    pixels = jax.ShapeDtypeStruct((data.rows, n, data.image_size, data.image_size, 3), np.uint8)
    return Batch(
        text=rows(t),
        media={"image": Media(pixels, array(n, dtype=bool), array(n))} if n else {},
        queries={"image": Queries(array(m, u), array(m, u, dtype=bool), array(m))} if m else {},
        feature_index=array(s or t) if t and n else None,
        source=rows(s),
        prior_index=array(t) if stage.objective.answer_prior else None,
    )


def stages(*configs: tuple[str, str]) -> list[tuple[str, str, str]]:
    return [(module, arg, stage) for module, arg in configs for stage in resolve(module, arg).stages]


STEPS = stages(
    ("blip2.shapes", ""), ("instructblip.instruct", "llm=flan_t5_xl,tiny"), ("minigpt4.stage1", "llm=llama2_7b,tiny"),
    ("blip2.shapes", "llm=smollm2"), ("blip2.easy_vqa", ""), ("blip2.stage2", "llm=flan_t5_xl,tiny"),
    *((module, "tiny") for module in PUBLISHED), *((module, "") for module in PUBLISHED),
    ("blip2.stage1", "encoder=clip_l"), ("blip2.stage2", "llm=flan_t5_xl"), ("instructblip.instruct", "llm=flan_t5_xl"),
    ("minigpt4.stage1", "llm=llama2_7b"), ("minigpt4.stage2", "llm=llama2_7b"),
)  # fmt: skip


def compile_step(module: str, arg: str, name: str) -> None:
    experiment = resolve(module, arg)
    stage = dataclasses.replace(experiment.stages[name], name=name)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), MESH_AXES)
    assembly = assemble(experiment, stage, mesh)
    prior = np.zeros((3, 20), np.float32) if stage.objective.answer_prior else None
    objective = make_objective(stage.objective.name, stage.objective.weights, prior=prior, positives=stage.objective.positives)
    step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
    compiled = lower_step(step, assembly.state, assembly.frozen, abstract_batch(stage)).compile()
    trainable = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(assembly.state.trainable))
    frozen = sum(leaf.size * leaf.dtype.itemsize for leaf in assembly.frozen.values())
    pixels = stage.data.rows * stage.data.media * stage.data.image_size**2 * 3
    arguments = compiled.memory_analysis().argument_size_in_bytes
    # Weights, two moments for what is trained, and nothing for what is frozen; the rest is the batch and a few scalars.
    assert 3 * trainable <= arguments <= 3 * trainable + frozen + pixels + 2**23


@pytest.mark.heavy
@pytest.mark.parametrize(("module", "arg", "name"), STEPS)
def test_every_step_compiles_on_shapes(module, arg, name):
    """For the CPU; that every step lowers for TPUs is quicker to see, in test_lowering.py."""
    compile_step(module, arg, name)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for module, arg in CONFIGS:
        (GOLDEN / f"{module}{'-' + arg if arg else ''}.txt").write_text(to_text(resolve(module, arg)))
