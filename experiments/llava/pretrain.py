"""LLaVA's first stage: the connector learns to speak to a frozen language model, by captions.

    python -m launch.train --config=experiments/llava/pretrain.py --workdir=runs/llava-pretrain
    python -m launch.train --config=experiments/llava/pretrain.py:size=13b --workdir=…
    python -m launch.train --config=experiments/llava/pretrain.py:version=1.0 --workdir=…
    launch/local.sh train --config=experiments/llava/pretrain.py:tiny --workdir=runs/tiny-pretrain     # any CPU

`--config.data.path=captions.json` trains on data of your own; docs/add_a_data_set.md says in which form. A toy's language model
first learns the words from text: stage `lm`, which the released ones do not need.

A step is 32 rows of 4,864 positions, into which some 256 captions with their pictures are packed, the published batch.
Hardware: the authors used 8 A100 of 80 GB for 3.5 hours (7B) and 5.5 (13B). There is no published figure for this stage.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.llava import released
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: version (1.0, 1.5 or 1.6), size (7b or 13b), tiny."""
    chosen = parse_arg(arg, version="1.5", size="7b", tiny=False)
    version, tiny = released.version(chosen.version, chosen.size), chosen.tiny
    stage, steps = version.pretrain, 200 if tiny else version.pretrain.steps
    config = released.experiment("llava/pretrain", version, chosen.size, stage.data, source="", tiny=tiny)
    config.stages = {
        **({"lm": released.words(config)} if tiny else {}),
        "pretrain": {
            "steps": steps,
            "objective": {"name": "language_modelling"},
            "data": released.data(stage, version.image_size, config, tiny=tiny),
            "optimizer": released.optimizer(stage.learning_rate, steps, tiny=tiny),
            "trainable": [[r"connectors\..*", True], [".*", False]],
            **released.half_precision(r"connectors\..*", tiny=tiny),
        },
    }
    return config
