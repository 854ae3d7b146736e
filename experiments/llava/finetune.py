"""LLaVA's second stage: connector and language model learn to follow instructions about pictures.

    python -m launch.train --config=experiments/llava/finetune.py --workdir=runs/llava
    python -m launch.train --config=experiments/llava/finetune.py:size=13b --workdir=…
    python -m launch.train --config=experiments/llava/finetune.py:version=1.6 --workdir=…
    launch/local.sh train --config=experiments/llava/finetune.py:tiny,pretrain=runs/tiny-pretrain --workdir=runs/tiny-llava

It begins with `runs/llava-pretrain` of the same version and size (`pretrain=DIR` names another). `--config.data.path=F.json`
trains on conversations of your own; docs/add_a_data_set.md says in which form. Version 1.6 reads pictures in tiles and trains
the image encoder too, at a tenth of the rate.

A step is 32 rows of 3,840 positions, into which some 128 conversations are packed, the published batch (version 1.6: 48 rows of
8,192). Hardware: the authors used 8 A100 of 80 GB for 10 hours (7B) and 20 (13B). Published for 7B and 13B: GQA 62.0 and 63.3,
VQAv2 78.5 and 80.0, TextVQA 58.2 and 61.3, POPE 85.9 and 85.9 (1.5); GQA 64.2 and 65.4, VQAv2 81.8 and 82.8, TextVQA 64.9 and
67.1 (1.6).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.llava import released
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: version (1.0, 1.5 or 1.6), size (7b or 13b), pretrain (a finished run), tiny."""
    chosen = parse_arg(arg, version="1.5", size="7b", pretrain="", tiny=False)
    version, tiny = released.version(chosen.version, chosen.size), chosen.tiny
    source = chosen.pretrain or ("" if tiny else "runs/llava-pretrain")
    stage, steps = version.finetune, 500 if tiny else version.finetune.steps
    trained = r"(connectors|llm)\..*" if not version.tower else ".*"
    config = released.experiment("llava/finetune", version, chosen.size, stage.data, source=source, tiny=tiny)
    config.evaluations = released.evaluations(stage, tiny=tiny)
    config.stages = {
        "finetune": {
            "steps": steps,
            "objective": {"name": "language_modelling"},
            "data": released.data(stage, version.image_size, config, tiny=tiny),
            "optimizer": released.optimizer(stage.learning_rate, steps, tiny=tiny),
            "trainable": [[trained, True], [".*", False]],
            "learning_rate": [[r"encoders\..*", version.tower]] if version.tower else [],
            "evaluate": list(config.evaluations),
            **released.half_precision(trained, tiny=tiny),
        }
    }
    return config
