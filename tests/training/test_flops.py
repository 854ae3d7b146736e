"""The FLOP counter against products worked out by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mmjax.parallel.mesh import make_mesh
from mmjax.training.flops import count, count_by_scope

B, D, LAYERS = 3, 4, 5
X = jax.ShapeDtypeStruct((B, D), jnp.float32)
W = jax.ShapeDtypeStruct((LAYERS, D, D), jnp.float32)
PRODUCT = 2 * B * D * D


def layers(w, x, wrap=lambda body: body):
    def body(carry, weight):
        return jnp.tanh(carry @ weight), None

    return jax.lax.scan(wrap(body), x, w)[0].sum()


def test_products_and_batched_products():
    assert count(lambda x: x @ x.T, X) == 2 * B * B * D
    batched = jax.ShapeDtypeStruct((7, B, D), jnp.float32)
    assert count(lambda x: jnp.einsum("nbd,ncd->nbc", x, x), batched) == 7 * 2 * B * B * D


def test_a_scan_counts_every_iteration():
    assert count(layers, W, X) == LAYERS * PRODUCT


def test_the_backward_pass_counts_what_is_differentiated():
    both = LAYERS * PRODUCT
    assert count(jax.grad(layers, argnums=(0, 1)), W, X) == 3 * both
    assert count(jax.grad(layers, argnums=1), W, X) == 2 * both


def test_rematerialisation_is_counted_and_dead_code_is_not():
    remat = jax.grad(partial(layers, wrap=partial(jax.checkpoint, prevent_cse=False)))
    # Forward, the same again, and the gradients by weight and by input.
    assert count(remat, W, X) == 4 * LAYERS * PRODUCT
    assert count(lambda w, x: (layers(w, x), x)[1], W, X) == 0


def test_inside_of_jit_cond_custom_rules_and_vmap():
    @jax.custom_vjp
    def product(x):
        return x @ jnp.ones((D, D))

    product.defvjp(lambda x: (product(x), None), lambda _, gradient: (gradient @ jnp.ones((D, D)),))
    assert count(jax.jit(jax.jit(product)), X) == PRODUCT
    assert count(jax.grad(lambda x: product(x).sum()), X) == 2 * PRODUCT - PRODUCT, "the value itself is not asked for"
    branches = lambda p, x: jax.lax.cond(p, lambda x: x @ x.T @ x, lambda x: x, x)  # noqa: E731
    assert count(branches, jax.ShapeDtypeStruct((), bool), X) == 2 * (2 * B * B * D)
    assert count(jax.vmap(lambda x: x @ jnp.ones((D, D))), jax.ShapeDtypeStruct((6, B, D), jnp.float32)) == 6 * PRODUCT


def test_convolutions():
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((4, 4, 3, 5), jnp.float32)
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(4, 4), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert count(convolve, image, kernel) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)
    depthwise = jax.ShapeDtypeStruct((4, 4, 1, 3), jnp.float32)
    assert count(partial(convolve, feature_group_count=3), image, depthwise) == 2 * (2 * 2 * 2 * 3) * (4 * 4)


def test_the_work_of_all_devices_under_shard_map():
    mesh = make_mesh({"fsdp": 8})
    mapped = jax.shard_map(
        lambda x: x @ jnp.ones((D, D)), mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp")
    )
    assert count(mapped, jax.ShapeDtypeStruct((16, D), jnp.float32)) == 2 * 16 * D * D


def test_a_while_loop_with_products_is_refused():
    loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ jnp.ones((D, D)), x)  # noqa: E731
    with pytest.raises(ValueError, match="while loop"):
        count(loop, X)


def test_scopes_share_the_forward_and_the_backward_pass():
    def model(w, head, x):
        with jax.named_scope("trunk"), jax.named_scope("deep"):
            carry, _ = jax.lax.scan(jax.checkpoint(lambda c, weight: (c @ weight, None), prevent_cse=False), x, w)
        with jax.named_scope("head"):
            return (carry @ head).sum() + (x @ x.T).sum()

    head = jax.ShapeDtypeStruct((D, 2), jnp.float32)
    forward = count_by_scope(model, W, head, X, scopes=("trunk",))
    assert forward == {"trunk": LAYERS * PRODUCT, "other": 2 * B * D * 2 + 2 * B * B * D}
    step = count_by_scope(jax.jit(jax.grad(model, argnums=(0, 1))), W, head, X, scopes=("trunk", "head"))
    assert step["trunk"] == 3 * LAYERS * PRODUCT and step["head"] == 2 * 2 * B * D * 2 and "other" not in step
