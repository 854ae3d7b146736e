"""The parts table: sizes, bytes and FLOPs of the tiny system, worked out by hand."""

from __future__ import annotations

import io
import json

from rich.console import Console

from mmjax.training.parts import part_of, parts_table, print_parts, step_flops, write_parts
from tests.training.tiny import Classification, set_up, tiny_batch, tiny_stage

ROWS = 16
ENCODER, CONNECTOR, LAYER, HEAD = 6 * 12, 12 * 16, 2 * 16 * 32, 16 * 8
LLM_FROZEN = ((r"encoders\..*|llm\..*", False), (".*", True))


def make_table(**fields):
    setup = set_up(tiny_stage(trainable=LLM_FROZEN, **fields), {"fsdp": 8})
    flops = step_flops(
        setup.definition, setup.stage, Classification(), setup.step, setup.state, setup.frozen, tiny_batch(ROWS)
    )  # fmt: skip
    return parts_table(setup.definition, setup.state, setup.frozen, setup.placement, flops)


def test_part_of_a_path():
    assert part_of("encoders.image.layer.kernel") == "encoders.image"
    assert part_of("llm.layers.up.kernel") == "llm"


def test_sizes_bytes_and_what_is_replicated():
    table = make_table(dtype=((r"llm\..*", "bfloat16"),), optimizer={"ema": 0.9})
    assert list(table) == ["connectors.image", "encoders.image", "llm", "total"]
    connector, llm = table["connectors.image"], table["llm"]
    assert connector.parameters == connector.trainable == CONNECTOR + 16
    assert connector.weight_bytes == 4 * (CONNECTOR + 16) and connector.optimizer_bytes == 3 * connector.weight_bytes
    assert llm.trainable == llm.optimizer_bytes == 0 and llm.dtypes == ("bfloat16",)
    assert llm.weight_bytes == 2 * llm.parameters == 2 * (2 * (LAYER + 16 + 32) + HEAD + 1)
    assert table["total"].replicated == ("encoders.image.layer.bias", "encoders.image.layer.kernel", "llm.scale")
    assert table["total"].parameters == sum(part.parameters for name, part in table.items() if name != "total")


def test_forward_and_backward_flops_per_part():
    table = make_table()
    forward = {"encoders.image": ENCODER, "connectors.image": CONNECTOR, "llm": 2 * LAYER + HEAD}
    for part, products in forward.items():
        assert table[part].forward_flops == 2 * ROWS * products
    assert table["encoders.image"].backward_flops == 0, "nothing trainable lies below the encoder"
    assert table["connectors.image"].backward_flops == 2 * ROWS * CONNECTOR, "a gradient by weight, none by input"
    assert table["llm"].backward_flops == 2 * ROWS * (2 * LAYER + HEAD), "a gradient by input, none by weight"


def test_rematerialisation_shows_in_the_backward_pass_and_accumulation_does_not():
    plain, remat = make_table()["llm"], make_table(remat="full")["llm"]
    assert remat.forward_flops == plain.forward_flops
    # The frozen product down of each layer is needed by no gradient, so only up is computed again.
    assert remat.backward_flops == plain.backward_flops + 2 * ROWS * 2 * (LAYER // 2)
    assert make_table(optimizer={"accumulation": 2}) == make_table()


def test_the_table_is_written_and_printed(tmp_path):
    table = make_table()
    write_parts(table, tmp_path / "parts.json")
    read = json.loads((tmp_path / "parts.json").read_text())
    assert read["llm"]["parameters"] == table["llm"].parameters and list(read) == list(table)
    out = io.StringIO()
    print_parts(table, Console(file=out, width=160))
    assert "encoders.image" in out.getvalue() and "replicated, since" in out.getvalue() and "llm.scale" in out.getvalue()
