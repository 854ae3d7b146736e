"""Decoding on a mesh gives what decoding on one device gives."""

from __future__ import annotations

import jax
import numpy as np

from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.placement import place
from mmjax.decoding.search import Searcher
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh


def test_a_mesh_changes_no_token(toy):
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    sharded = jax.device_put(toy.parameters, shardings(toy.definition.specs, mesh))
    rows = [[2, 5 + i, 9] for i in range(4)]
    options = DecodingOptions(max_new_tokens=4)
    batch = toy.prompts(*rows)
    assert len({str(shard.index) for shard in place(batch, sharded).text.tokens.addressable_shards}) == 4
    on_mesh = Searcher(toy.definition.bind).run(sharded, batch, options)
    alone = toy.searcher.run(toy.parameters, batch, options)
    np.testing.assert_array_equal(on_mesh.tokens, alone.tokens)
    np.testing.assert_allclose(on_mesh.logprobs, alone.logprobs, rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_divide_stay_whole(toy):
    mesh = make_mesh({"fsdp": -1})
    sharded = jax.device_put(toy.parameters, shardings(toy.definition.specs, mesh))
    batch = toy.prompts([2, 5], [2, 6])
    assert place(batch, sharded) is batch and place(batch, toy.parameters) is batch
