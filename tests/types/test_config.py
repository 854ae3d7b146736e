from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mmjax.training.stage import Experiment
from mmjax.types.config import diff, from_config, parse_arg, to_dict, to_text
from mmjax.types.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    rate: float
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    name: str
    steps: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    leaf: Leaf
    flag: bool = False
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    rules: tuple[tuple[str, Any], ...] = ()
    note: str | None = None
    stages: dict[str, Named] = dataclasses.field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def root(**fields) -> Root:
    return from_config(Root, ConfigDict({"leaf": {"rate": 1}, **fields}))


def test_conversion_of_every_kind_of_field():
    config = root(
        flag=True,
        names=["x", "y"],
        pair=(3.0, 4),
        rules=(("a.*", [1, 2]), ("b", None)),
        note="n",
        stages={"one": {"steps": 1e3}},
        parts={"encoders": {"image": {"width": 8, "sizes": [1, 2]}, "audio": {"width": 4}}, "llm": {"family": "opt"}},
    )
    assert config == Root(
        leaf=Leaf(rate=1.0),
        flag=True,
        names=("x", "y"),
        pair=(3, 4.0),
        rules=(("a.*", (1, 2)), ("b", None)),
        note="n",
        stages={"one": Named(name="one", steps=1000)},
        parts={
            "encoders.image": {"width": 8, "sizes": (1, 2)},
            "encoders.audio": {"width": 4},
            "llm": {"family": "opt"},
        },
    )
    assert type(config.stages["one"].steps) is int and type(config.leaf.rate) is float


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flg": True}, "config.flg: no such key; did you mean 'flag'?"),
        ({"leaf": {"rat": 1}}, "config.leaf.rat: no such key; did you mean 'rate'?"),
        ({"stages": {"one": {"stps": 1}}}, "config.stages.one.stps: no such key; did you mean 'steps'?"),
        ({"leaf": {}}, "config.leaf.rate: missing; Leaf needs it"),
        ({"leaf": 3}, "config.leaf: expected a mapping with the fields of Leaf, got 3 (int)"),
        ({"leaf": {"rate": "fast"}}, "config.leaf.rate: expected a number, got 'fast' (str)"),
        ({"leaf": {"rate": True}}, "config.leaf.rate: expected a number, got True (bool)"),
        ({"leaf": {"rate": -1}}, "config.leaf: rate must be above 0, got -1.0"),
        ({"leaf": {"rate": 1, "kind": "c"}}, "config.leaf.kind: expected 'a' or 'b', got 'c' (str)"),
        ({"flag": 1}, "config.flag: expected true or false, got 1 (int)"),
        ({"stages": {"one": {"steps": 1.5}}}, "config.stages.one.steps: expected a whole number, got 1.5 (float)"),
        ({"stages": {"one": {"steps": float("inf")}}}, "config.stages.one.steps: expected a whole number, got inf (float)"),
        ({"stages": [1]}, "config.stages: expected a mapping, got [1] (list)"),
        ({"names": "xy"}, "config.names: expected a list, got 'xy' (str)"),
        ({"names": ["x", 1]}, "config.names[1]: expected a text, got 1 (int)"),
        ({"pair": [1]}, "config.pair: expected 2 values, got [1] (list)"),
        ({"rules": [["a"]]}, "config.rules[0]: expected 2 values, got ['a'] (list)"),
        ({"note": 1}, "config.note: expected a text, got 1 (int)"),
    ],
)
def test_a_mistake_is_one_line_with_its_path(fields, message):
    with pytest.raises(UserError) as caught:
        from_config(Root, {"leaf": {"rate": 1}, **fields})
    assert str(caught.value) == message


def experiment() -> dict:
    data = {"mixture": {"shapes": {"path": "p"}}, "rows": 8, "length": 16}
    stage = {"steps": 5, "objective": {"name": "language_modelling"}, "data": data, "optimizer": {"learning_rate": 1e-3}}
    parts = {"llm": {"family": "opt", "width": 8}, "encoders": {"image": {"family": "vit"}}}
    return {"name": "n", "parts": parts, "tokenizers": {"llm": "t"}, "stages": {"vqa": stage}}


def test_stages_and_parts_keep_the_order_in_which_they_are_written():
    stages = {"second": {}, "a": {}, "first": {}}
    config = root(stages=ConfigDict(stages), parts={"z": {"family": "x"}, "b": {"y": {"k": 1}, "a": {"k": 2}}})
    assert list(config.stages) == list(stages)
    assert list(config.parts) == ["z", "b.y", "b.a"]


def test_an_experiment_survives_json():
    config = from_config(Experiment, experiment())
    assert config.stages["vqa"].name == "vqa"
    assert from_config(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def every_key(config: dict, path: tuple[str, ...] = ()):
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from every_key(value, (*path, key))


@pytest.mark.parametrize(
    "path", [path for path in every_key(to_dict(from_config(Experiment, experiment()))) if "parts" not in path]
)
def test_every_mistyped_key_of_an_experiment_is_named(path):
    config = to_dict(from_config(Experiment, experiment()))
    folder = config
    for key in path[:-1]:
        folder = folder[key]
    if path[-2:-1] in (("stages",), ("mixture",)):
        return  # the user's own names: nothing to mistype
    folder[path[-1] + "x"] = folder.pop(path[-1])
    with pytest.raises(UserError, match=rf"{path[-1]}x: no such key; did you mean '{path[-1]}'"):
        from_config(Experiment, config)


def test_text_and_difference():
    old, new = root(stages={"one": {"steps": 1}}), root(stages={"one": {"steps": 2}}, rules=(("a", True),))
    assert "stages.one.steps = 1\n" in to_text(old)
    assert to_text(old).splitlines() == sorted(to_text(old).splitlines())
    assert diff(old, old) == diff(old, to_dict(old)) == []
    assert diff(old, new) == ['rules: [] -> [["a", true]]', "stages.one.steps: 1 -> 2"]
    assert diff({"a": 1}, {"b": 1}) == ["a: 1 -> (absent)", "b: (absent) -> 1"]


def test_arguments_take_the_types_of_their_defaults():
    args = parse_arg("width=64, llm=smollm2,fast,rate=1,limit=3", width=32, llm="toy", fast=False, rate=0.5, limit=None, kept=7)
    assert vars(args) == {"width": 64, "llm": "smollm2", "fast": True, "rate": 1.0, "limit": 3, "kept": 7}
    assert parse_arg("llm=1e3", llm="").llm == "1e3"
    assert parse_arg(None, width=32) == parse_arg("", width=32)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("widht=3", "no such argument; did you mean 'width'"),
        ("width=x", "expected a whole number, got 'x'"),
        ("width", "expected a whole number, got True"),
        ("fast=3", "expected true or false, got 3"),
    ],
)
def test_a_mistaken_argument_is_named(arg, message):
    with pytest.raises(UserError, match=message):
        parse_arg(arg, width=32, fast=False)


@given(st.integers(), st.booleans())
def test_arguments_read_what_they_write(number, flag):
    assert vars(parse_arg(f"number={number},flag={flag}", number=0, flag=False)) == {"number": number, "flag": flag}
