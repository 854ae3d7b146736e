"""LLaVA-1.5's second stage with adapters: the language model is frozen but for low-rank updates of its linear layers.

    python -m launch.train --config=experiments/llava/finetune_lora.py --workdir=runs/llava-lora
    python -m launch.train --config=experiments/llava/finetune_lora.py:size=13b --workdir=…
    launch/local.sh train --config=experiments/llava/finetune_lora.py:tiny,pretrain=runs/tiny-pretrain --workdir=runs/tiny-lora

As finetune.py in all else. Rank 128, alpha 256 on every linear layer of the language model, none on the encoder's or the head;
the connector is trained in full at a tenth of the rate. The authors drop 5 % of the adapters' inputs; this is not done here.

A step is 32 rows of 3,840 positions, some 128 conversations. Published for 7B and 13B: GQA 63.0 and 63.3, VQAv2 79.1 and 80.0,
TextVQA 58.2 and 60.2, POPE 86.4 and 86.7.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.llava import finetune, released
from mmjax.types.config import parse_arg

RANK, ALPHA = 128, 256.0
TRAINED = r"(connectors\..*|llm\..*\.lora_[ab])"


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: those of finetune.py."""
    tiny = parse_arg(arg, version="1.5", size="7b", pretrain="", tiny=False).tiny
    config = finetune.get_config(arg)
    config.name = "llava/finetune_lora"
    stage = config.stages.finetune
    stage.optimizer.learning_rate = 4e-3 if tiny else 2e-4
    stage.learning_rate = [[r"connectors\..*", 0.1]]
    stage.trainable = [[TRAINED, True], [".*", False]]
    stage.lora = [[r"llm\.layers\..*\.kernel", 16 if tiny else RANK]]
    stage.lora_alpha = 32.0 if tiny else ALPHA
    for name, value in released.half_precision(TRAINED, tiny=tiny).items():
        stage[name] = value
    return config
