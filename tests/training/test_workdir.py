"""The processes of a run compare their configs before anything is compiled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from mmjax.training.stage import Experiment
from mmjax.training.workdir import check_processes
from mmjax.types import UserError
from mmjax.types.config import from_config


class Store:
    """The key-value store of a coordinator."""

    def __init__(self):
        self.values, self.told = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite):
        with self.told:
            self.values[key] = value
            self.told.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.told:
            assert self.told.wait_for(lambda: key in self.values, timeout=milliseconds / 1000)
            return self.values[key]


def experiment(steps=5, workers=0, path="a"):
    data = {"mixture": {"shapes": {"path": path}}, "rows": 8, "length": 16, "workers": workers}
    stage = {"steps": steps, "objective": {"name": "language_modelling"}, "data": data, "optimizer": {"learning_rate": 1e-3}}
    return from_config(Experiment, {"name": "n", "parts": {}, "tokenizers": {"llm": path}, "stages": {"vqa": stage}})


def said(*experiments):
    """What each process raises, or None."""
    store = Store()

    def ask(index):
        try:
            check_processes(experiments[index], client=store, index=index, count=len(experiments))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(experiments)) as processes:
        return list(processes.map(ask, range(len(experiments))))


def test_equal_configs_and_local_paths_are_fine():
    assert said(experiment(), experiment(workers=2, path="b"), experiment()) == [None] * 3
    assert said(experiment()) == [None]


def test_the_one_that_differs_and_process_0_say_what():
    first, second, third = said(experiment(), experiment(), experiment(steps=6))
    assert second is None
    assert first == third
    assert "process 2 on " in third and "than process 0: stages.vqa.steps: 5 -> 6; give all processes the same" in third
