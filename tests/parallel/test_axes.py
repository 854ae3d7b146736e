"""The table of logical axes, applied to shapes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.layers.parameters import ParameterSpec
from mmjax.parallel.axes import batch_sharding, batch_shards, leaf_sharding, replicated, replicated_leaves, shardings
from mmjax.parallel.mesh import make_mesh
from mmjax.types import Batch, Media, Text, UserError


def spec(shape, *axes):
    return ParameterSpec(shape, "float32", axes)


def place(shape, *axes, override=None, **mesh):
    overrides = {} if override is None else {"leaf": override}
    return shardings({"leaf": spec(shape, *axes)}, make_mesh(mesh), overrides, stage="vqa")["leaf"].spec


@pytest.mark.parametrize(
    ("shape", "axes", "mesh", "expected"),
    [
        ((16, 32), ("embed", "ffn"), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ((16, 256), ("embed", "ffn"), {"fsdp": 4, "tensor": 2}, P(None, ("fsdp", "tensor"))),
        ((3, 16, 32), ("layers", "embed", "ffn"), {"fsdp": 4, "tensor": 2}, P(None, "fsdp", "tensor")),
        ((8, 3), ("layers", None), {"fsdp": 8}, P(None, None)),
        ((64, 16), ("vocab", "embed"), {"fsdp": 4, "tensor": 2}, P(("fsdp", "tensor"), None)),
        ((6, 16), ("vocab", "embed"), {"fsdp": 4, "tensor": 2}, P("tensor", "fsdp")),
        ((24, 40), (None, "embed"), {"fsdp": 8}, P(None, "fsdp")),
        ((8, 8), ("heads", "ffn"), {"tensor": 8}, P("tensor", None)),
        ((), (), {"fsdp": 8}, P()),
        ((16, 32), ("embed", "ffn"), {"replica": 8}, P(None, None)),
    ],
)
def test_table(shape, axes, mesh, expected):
    assert place(shape, *axes, **mesh) == expected


def test_tensor_must_divide_and_says_what_and_where():
    with pytest.raises(UserError, match=r"leaf: dimension 'kv_heads' of size 6 .* 'tensor|tensor of size 4.*vqa\.mesh\.tensor"):
        place((16, 6), "embed", "kv_heads", fsdp=2, tensor=4)


def test_fsdp_that_divides_nothing_replicates_and_is_reported():
    mesh = make_mesh({"fsdp": 8})
    placement = shardings({"a": spec((6, 12), "embed", "embed"), "b": spec((16,), None), "c": spec(())}, mesh)
    assert placement["a"].spec == P(None, None) and replicated_leaves(placement) == ("a", "c")
    assert replicated_leaves(shardings({"a": spec((6,), None)}, make_mesh({"tensor": 8}))) == ()


def test_an_override_counts_the_dimensions_of_one_layer():
    leaf = ((3, 16, 32), "layers", "embed", "ffn")
    assert place(*leaf, override=[None, ["fsdp", "tensor"]], fsdp=4, tensor=2) == P(None, None, ("fsdp", "tensor"))
    assert place(*leaf, override=[None, None], fsdp=4, tensor=2) == P(None, None, None)
    for wrong, words in ((["fsdp"], "2 dimensions"), (["data", None], "expected each"), (["fsdp", "fsdp"], "at most once")):
        with pytest.raises(UserError, match=words):
            place(*leaf, override=wrong, fsdp=4, tensor=2)
    with pytest.raises(UserError, match="size 3 is not divisible"):
        place((3,), None, override=["fsdp"], fsdp=8)


def test_an_override_by_logical_axis_leaves_the_others_whole():
    leaf = ((3, 16, 32), "layers", "embed", "ffn")
    assert place(*leaf, override={"ffn": "tensor"}, fsdp=4, tensor=2) == P(None, None, "tensor")
    assert place(*leaf, override={}, fsdp=4, tensor=2) == P(None, None, None)
    with pytest.raises(UserError, match=r"vqa\.sharding: 'fn' is no logical axis; there are batch"):
        place(*leaf, override={"fn": "tensor"}, fsdp=4, tensor=2)


def test_an_axis_without_a_row_in_the_table_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="unknown logical axis 'head'"):
        place((8,), "head", fsdp=8)


@pytest.mark.parametrize(
    ("rows", "slots", "expected"),
    [
        (8, 5, P(("replica", "fsdp", "sequence"))),  # the rows divide over all
        (4, 6, P(("replica", "fsdp"), "sequence")),  # … or the slots over the devices of a row
        (4, 5, P(("replica", "fsdp"), None)),  # … or every one of these has the media of its row
    ],
)
def test_media_are_spread_over_all_devices_where_they_divide(rows, slots, expected):
    mesh = make_mesh({"replica": 2, "fsdp": 2, "sequence": 2})
    text = Text(*[np.zeros((rows, 12), dtype) for dtype in (int, int, float, int, int)])
    media = {"image": Media(np.zeros((rows, slots, 4, 4, 3), np.uint8), np.zeros((rows, slots), bool))}
    batch = Batch(text=text, media=media, feature_index=np.zeros((rows, 12), int))
    specs = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(batch):
        specs.setdefault(keys[0].name, set()).add(leaf_sharding(keys, leaf.shape, mesh).spec)
    by_position = P(("replica", "fsdp"), ("sequence",))
    assert specs == {"text": {by_position}, "feature_index": {by_position}, "media": {expected}}


def test_leaves_that_are_no_field_of_a_batch_are_split_by_rows():
    keys = (jax.tree_util.DictKey("pixels"),)
    assert leaf_sharding(keys, (8, 6), make_mesh({"fsdp": 4, "sequence": 2})).spec == P(("fsdp",))


def test_batches_and_scalars():
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    assert batch_sharding(mesh).spec == P(("replica", "fsdp")) and batch_shards(mesh) == 4
    assert replicated(mesh).is_fully_replicated


def test_parameters_are_stored_in_pieces_over_fsdp_and_sequence():
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})
    specs = {
        "wide": spec((3, 8, 16), "layers", "embed", "ffn"),
        "vocabulary": spec((16, 6), "vocab", "embed"),
        "two of four": spec((6, 3), None, None),
        "odd": spec((3,), None),
    }
    placement = shardings(specs, mesh)
    assert placement["wide"].spec == P(None, ("fsdp", "sequence"), "tensor")
    assert placement["vocabulary"].spec == P(("fsdp", "sequence", "tensor"), None)
    assert placement["two of four"].spec == P("fsdp", None)
    assert replicated_leaves(placement) == ("odd",)
