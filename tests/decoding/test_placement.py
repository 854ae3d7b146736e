"""Decoding on a mesh gives what decoding on one device gives."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.placement import place
from mmjax.decoding.search import Searcher
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh

CACHE = P(None, ("replica", "fsdp"), "tensor")


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


def test_the_cache_lies_where_its_heads_and_rows_are_and_is_never_copied(toy):
    """Each device keeps the keys and values of its rows and heads; a piece writes into the buffers of the one before."""
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    sharded = jax.device_put(toy.parameters, shardings(toy.definition.specs, mesh))
    searcher, zeros = Searcher(toy.definition.bind), np.zeros(4, np.int32)
    static, knobs = DecodingOptions(max_new_tokens=6).split()
    batch = place(toy.prompts(*([2, 5 + i, 9] for i in range(4))), sharded)
    state = searcher._start(sharded, batch, zeros, knobs, options=static)
    for step in (3, 6):
        cache = state.reader.cache
        for values in (cache.keys, cache.values):  # [layers rows heads slots head_dim]
            assert values.sharding.is_equivalent_to(NamedSharding(mesh, CACHE), values.ndim)
            assert {shard.data.shape for shard in values.addressable_shards} == {(2, 1, 1, 13, 8)}
        before, state = state, searcher._advance(sharded, state, zeros > 0, np.int32(step), knobs, options=static)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert searcher.compilations == 2


def test_rows_that_do_not_divide_stay_whole(toy):
    mesh = make_mesh({"fsdp": -1})
    sharded = jax.device_put(toy.parameters, shardings(toy.definition.specs, mesh))
    batch = toy.prompts([2, 5], [2, 6])
    assert place(batch, sharded) is batch and place(batch, toy.parameters) is batch
