"""Matrix FLOPs of a train step from the sizes in its config alone: what `mmjax.training.flops` counts, worked out on paper.

A model is a list of blocks, a block a list of matrix products and of which values each reads. Three rules give the step:
  forward   every product once,
  backward  a product again for each of its two operands that has a gradient: a weight that is trained, or an activation behind
            which something is trained,
  remat     once more each product whose result the backward pass needs and the policy has not kept. It needs the operands of
            every gradient, what every nonlinear function reads, and whatever these are computed from.
So frozen weights, adapters and every remat policy are cases of one rule and no formulas of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from mmjax.connectors.linear import LinearConfig
from mmjax.connectors.qformer import QFormerConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.layers.parameters import Definition
from mmjax.layers.stack import ATTENTION
from mmjax.llms.llama import LlamaConfig
from mmjax.llms.opt import OPTConfig
from mmjax.llms.palm import PaLMConfig
from mmjax.llms.t5 import T5Config
from mmjax.systems.parts import part_config
from mmjax.training.stage import Experiment, Stage

Number = int | float
CARRY = "carry"  # what a block reads of the block before it


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product.

    Args:
      value: name of its result; products of one name (a layer and its adapter) are summed.
      flops: of one product; a multiply-add counts as two.
      reads: values that its left operand is a function of.
      weight: path of its right operand, if that is a parameter;
      times: else the values that it is a function of.
      linear: the left operand is the values themselves, or a linear function of them.
    """

    value: str
    flops: Number
    reads: tuple[str, ...] = ()
    weight: str = ""
    times: tuple[str, ...] = ()
    linear: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """Products that are done together, `layers` times.

    Args:
      part: of the model that it belongs to.
      products: in order.
      layers: of a stack, in which every block reads what the one before it gives.
      ends: values that a nonlinear function reads at the block's end.
      gradients: values from outside behind which something is trained.
      remat: the policy.
    """

    part: str
    products: tuple[Product, ...]
    layers: int = 1
    ends: tuple[str, ...] = ()
    gradients: frozenset[str] = frozenset()
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class Flops:
    """Matrix FLOPs of a step.

    Args:
      forward, backward: without what remat repeats.
      again: what it repeats.
    """

    forward: Number = 0
    backward: Number = 0
    again: Number = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    @property
    def total(self) -> Number:
        return self.forward + self.backward + self.again


KEPT: dict[str, Callable[[Product], bool]] = {
    "full": lambda product: False,
    "dots": lambda product: True,
    "dots_no_batch": lambda product: bool(product.weight),  # activations are multiplied row by row
    "attention": lambda product: product.value.rpartition(".")[2] in ATTENTION,
    "offload": lambda product: product.value.rpartition(".")[2] in ATTENTION,
}


def block_flops(block: Block, trained: Collection[str]) -> Flops:
    """What a block costs, all layers together.

    Args:
      trained: paths of parameters.
    """
    gradients = _gradients(block, trained)

    def differentiated(values: tuple[str, ...]) -> bool:
        return any(value in gradients for value in values)

    forward = sum(product.flops for product in block.products)
    backward = sum(
        product.flops * ((product.weight in trained) + differentiated(product.reads) + differentiated(product.times))
        for product in block.products
    )
    again = 0
    if block.remat != "none" and backward:
        needed = _needed(block, trained, gradients)
        again = sum(product.flops for product in block.products if product in needed)
    return Flops(*(block.layers * flops for flops in (forward, backward, again)))


def _gradients(block: Block, trained: Collection[str]) -> set[str]:
    """The values of a block, its carry included, behind which something is trained."""
    found = set(block.gradients)
    if found or any(product.weight in trained for product in block.products):
        found.add(CARRY)  # from the second layer on, and a scan does the same in the first
    for product in block.products:
        if product.weight in trained or found & {*product.reads, *product.times}:
            found.add(product.value)
    return found


def _needed(block: Block, trained: Collection[str], gradients: set[str]) -> set[Product]:
    """The products that the backward pass does again."""
    wanted = {value for value in block.ends if value in gradients}
    for product in block.products:
        left, right = (bool(gradients & set(values)) for values in (product.reads, product.times))
        if product.weight in trained or right or (left and not product.linear):
            wanted |= set(product.reads)
        if left:
            wanted |= set(product.times)
    again: set[Product] = set()
    for product in reversed(block.products):
        if product.value in wanted and not KEPT[block.remat](product):
            again.add(product)
            wanted |= {*product.reads, *product.times}
    return again


@dataclasses.dataclass(frozen=True)
class Model:
    """What the blocks of a stage are made from.

    Args:
      experiment, stage: their parts, lengths and policies.
      shapes: of all parameters, those of a stack as each layer has them.
      trained: paths.
      mesh: size of every axis; one that is missing is 1.
      useful: leave out what is done only because it is easier: remat, padding, and the pairs of tokens that attention computes
        and then masks.
    """

    experiment: Experiment
    stage: Stage
    shapes: Mapping[str, tuple[int, ...]]
    trained: frozenset[str]
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    useful: bool = False

    @property
    def pictures(self) -> int:
        """Media slots of all rows, with those that sequence parallelism adds so that it can share them out evenly."""
        data, shares = self.stage.data, 1 if self.useful else self.mesh.get("sequence", 1)
        rows = data.rows // self.stage.optimizer.accumulation
        local = rows // math.gcd(rows, self.mesh.get("replica", 1) * self.mesh.get("fsdp", 1))
        return data.rows * (data.media + -data.media % (shares // math.gcd(shares, local)))

    @property
    def scored(self) -> int:
        """Positions of a row that the head scores: whole chunks, of pieces from each share of the sequence."""
        length, chunk = self.stage.data.length, self.stage.objective.chunk
        if length <= chunk or self.useful:
            return length
        shares = math.gcd(length, self.mesh.get("sequence", 1))
        piece = -(-chunk // shares)
        return shares * -(-length // shares // piece) * piece

    @property
    def remat(self) -> str:
        return "none" if self.useful else self.stage.remat

    def config(self, part: str) -> Any:
        """The config of a part, None where the experiment has no such part."""
        return part_config(part, self.experiment.parts[part]) if part in self.experiment.parts else None

    def trains(self, *prefixes: str) -> bool:
        """Whether a parameter below one of these paths is trained."""
        return any(path.startswith(prefixes) for path in self.trained)

    def seen(self, keys: int, *, causal: bool = False) -> Number:
        """Keys that each query is multiplied with. Usefully, those of its own segment up to itself; a packed row is taken to
        have a segment for each of its media slots, all of one length."""
        if not self.useful:
            return keys
        segment = keys / max(self.stage.data.media, 1) if self.stage.data.pack else keys
        return (segment + 1) / 2 if causal else segment

    def linear(
        self, value: str, path: str, tokens: int, reads: tuple[str, ...], *, linear: bool = False
    ) -> tuple[Product, ...]:
        """A linear layer, with its adapter where it has one: two FLOPs for each weight and token."""

        def product(value: str, name: str, reads: tuple[str, ...], linear: bool) -> Product:
            weight = f"{path}.{name}"
            return Product(value, 2 * tokens * math.prod(self.shapes[weight]), reads, weight, linear=linear)

        whole = product(value, "kernel", reads, linear)
        if f"{path}.lora_a" not in self.shapes:
            return (whole,)
        low = product(f"{value}.low", "lora_a", reads, linear)
        return whole, low, product(value, "lora_b", (low.value,), True)

    def attention(
        self, name: str, path: str, queries: int, keys: int, seen: Number, reads: tuple[str, ...], others: tuple[str, ...] = ()
    ) -> tuple[Product, ...]:
        """The products of `mmjax.layers.multi_head.MultiHeadAttention`.

        Args:
          name: prefix of its values.
          queries, keys: numbers of them, over all rows.
          seen: keys for each query.
          reads, others: what the queries are a function of, and the keys and values where they are not of the same.
        """
        query, key, value, attended = (f"{name}{each}" for each in ATTENTION[:4])
        pairs = 2 * queries * seen * self.shapes[f"{path}.query.kernel"][1]
        return (
            *self.linear(query, f"{path}.query", queries, reads),
            *self.linear(key, f"{path}.key", keys, others or reads),
            *self.linear(value, f"{path}.value", keys, others or reads),
            Product(f"{name}scores", pairs, (query,), times=(key,), linear=True),
            Product(attended, pairs, (f"{name}scores",), times=(value,)),
            *self.linear(f"{name}output", f"{path}.output", queries, (attended,), linear=True),
        )

    def mlp(self, name: str, path: str, tokens: int, reads: tuple[str, ...]) -> tuple[Product, ...]:
        """The products of a feed-forward block, gated or not."""
        inner = [each for each in ("gate", "up") if f"{path}.{each}.kernel" in self.shapes]
        products = [product for each in inner for product in self.linear(f"{name}{each}", f"{path}.{each}", tokens, reads)]
        values = tuple(f"{name}{each}" for each in inner)
        return (*products, *self.linear(f"{name}down", f"{path}.down", tokens, values))

    def stack(self, part: str, products: tuple[Product, ...], layers: int, gradients: set[str], ends: tuple[str, ...] = ()):
        """A stack of layers under the stage's policy."""
        return Block(part, products, layers, ends, frozenset(gradients), self.remat)


def model_flops(
    experiment: Experiment,
    stage: Stage,
    definition: Definition,
    trained: Collection[str],
    mesh: Mapping[str, int] | None = None,
    *,
    useful: bool = False,
) -> dict[str, Flops]:
    """Matrix FLOPs of one step of a stage, by part.

    Args:
      definition: of the stage's model.
      trained: paths of the trained parameters.
      mesh, useful: see `Model`.
    """
    shapes = {path: spec.unstacked_shape for path, spec in definition.specs.items()}
    model = Model(experiment, stage, shapes, frozenset(trained), mesh or {}, useful)
    total: dict[str, Flops] = {}
    for block in OBJECTIVES[stage.objective.name](model):
        total[block.part] = total.get(block.part, Flops()) + block_flops(block, model.trained)
    return total


def language_modelling(model: Model) -> Iterator[Block]:
    """Encoder, connector, language model and its head."""
    data = model.stage.data
    soft = model.trains("encoders.", "connectors.") and data.media > 0
    if data.media:
        config, connector = model.config("encoders.image"), model.config("connectors.image")
        yield from vit(model, config, model.pictures)
        yield from CONNECTORS[type(connector)](model, connector)
    llm = model.config("llm")
    yield from LLMS[type(llm)](model, llm, {"embeddings"} if soft or model.trains("llm.token_embedding.") else set())


def vit(model: Model, config: ViTConfig, pictures: int) -> Iterator[Block]:
    """The image encoder up to the depth whose features are read."""
    path, tokens = "encoders.image", pictures * config.positions
    patches = model.linear("patches", f"{path}.patch_embedding", pictures * config.grid**2, ())
    yield Block(path, patches)
    depth = config.depth
    layers = config.layers if depth is None else depth if depth >= 0 else config.layers + 1 + depth
    below = {CARRY} if model.trains(*(f"{path}.{each}" for each in ("patch", "class", "position", "pre_norm"))) else set()
    yield model.stack(path, transformer(model, f"{path}.layers", tokens, config.positions), layers, below)


def transformer(
    model: Model, path: str, tokens: int, seen: Number, *, source: tuple[int, Number] | None = None, parallel: bool = False
) -> tuple[Product, ...]:
    """The products of a transformer's layer.

    Args:
      tokens: of all rows.
      seen: keys for each query of the self-attention.
      source: of a layer with cross-attention, tokens and how many each query sees of them.
      parallel: attention and feed-forward block read the same.
    """
    products, reads = model.attention("", f"{path}.attention", tokens, tokens, seen, (CARRY,)), (CARRY, "output")
    if source is not None:
        products += model.attention("cross.", f"{path}.cross", tokens, *source, reads, ("source",))
        reads = (*reads, "cross.output")
    return (*products, *model.mlp("", f"{path}.mlp", tokens, (CARRY,) if parallel else reads))


def decoder(model: Model, config: Any, gradients: set[str]) -> Iterator[Block]:
    """A language model that is a decoder: embeddings, layers, head."""
    data, narrow = model.stage.data, "llm.project_in.kernel" in model.shapes
    tokens = data.rows * data.length
    if narrow:
        products = model.linear("x", "llm.project_in", tokens, ("embeddings",), linear=True)
        yield Block("llm", products, gradients=frozenset(gradients))
    entered = bool(gradients) or model.trains("llm.project_in", "llm.position_embedding")
    seen, last = model.seen(data.length, causal=True), not getattr(config, "norm_first", True)
    products = transformer(model, "llm.layers", tokens, seen, parallel=isinstance(config, PaLMConfig))
    yield model.stack("llm", products, config.layers, {CARRY} if entered else set(), ("down",) if last else ())
    hidden = entered or model.trains("llm.layers", "llm.norm")
    if narrow:
        products = model.linear("x", "llm.project_out", tokens, ("hidden",))
        yield Block("llm", products, gradients=frozenset({"hidden"} if hidden else ()))
    yield head(model, hidden or model.trains("llm.project_out"))


def encoder_decoder(model: Model, config: T5Config, gradients: set[str]) -> Iterator[Block]:
    """A T5: the source through the encoder, the text through the decoder."""
    data = model.stage.data
    sources, tokens = data.rows * data.source_length, data.rows * data.length
    read = bool(gradients) or model.trains("llm.encoder.")
    products = transformer(model, "llm.encoder.layers", sources, model.seen(data.source_length))
    yield model.stack("llm", products, config.layers, {CARRY} if gradients or model.trains("llm.encoder.position") else set())
    products = transformer(
        model, "llm.decoder.layers", tokens, model.seen(data.length, causal=True),
        source=(sources, model.seen(data.source_length)),
    )  # fmt: skip
    written = model.trains("llm.token_embedding.", "llm.decoder.position")
    outside = {*({"source"} if read else ()), *({CARRY} if written else ())}
    yield model.stack("llm", products, config.decoder_layers, outside)
    yield head(model, read or written or model.trains("llm.decoder."))


def head(model: Model, hidden: bool) -> Block:
    """The logits, chunk by chunk, each computed again in the backward pass."""
    data, chunk = model.stage.data, model.stage.objective.chunk
    whole = data.length <= chunk or model.useful
    weight = "llm.head.kernel" if "llm.head.kernel" in model.shapes else "llm.token_embedding.table"
    logits = Product("logits", 2 * data.rows * model.scored * math.prod(model.shapes[weight]), ("hidden",), weight, linear=True)
    gradients = frozenset({"hidden"} if hidden else ())
    return Block("llm", (logits,), 1, ("logits",), gradients, "none" if whole else "full")


def linear_connector(model: Model, config: LinearConfig) -> Iterator[Block]:
    """A map, or an MLP, of every feature."""
    data, path, products = model.stage.data, "connectors.image", ()
    reads, tokens = ("features",), data.rows * data.media * config.soft_tokens(model.config("encoders.image").positions)
    for index in range(config.layers):
        products += model.linear(f"map{index}", f"{path}.maps.{index}", tokens, reads, linear=index == 0)
        reads = (f"map{index}",)
    yield Block(path, products, gradients=_features(model))


def qformer_connector(model: Model, config: QFormerConfig) -> Iterator[Block]:
    """The Q-Former once for every query, and the projection of its soft tokens."""
    data = model.stage.data
    asked = data.queries or data.media
    text = data.query_length if data.queries and config.vocab else 0
    yield qformer(model, config, data.rows * asked, text, data.rows * data.media)
    trained = model.trains(*(f"connectors.image.{each}" for each in ("query_tokens", "norm", "layers", "word", "position")))
    soft = model.linear("soft", "connectors.image.projection", data.rows * asked * config.queries, ("queries",), linear=True)
    yield Block("connectors.image", soft, gradients=frozenset({"queries"} if trained or _features(model) else ()))


def qformer(model: Model, config: QFormerConfig, rows: int, text: int, pictures: int) -> Block:
    """A pass of the Q-Former over [queries ; text]; without pictures there are no queries."""
    queries = config.queries if pictures else 0
    features = model.config("encoders.image").positions
    products, reads, length = (), (CARRY,), queries + text
    for index in range(config.frequency):
        path, name = f"connectors.image.layers.layers.{index}", f"{index}."
        products += model.attention(name, f"{path}.attention", rows * length, rows * length, length, reads)
        reads = (*reads, f"{name}output")
        after = reads
        if queries and f"{path}.cross.query.kernel" in model.shapes:
            products += model.attention(
                f"{name}cross.", f"{path}.cross", rows * queries, pictures * features, features, reads, ("features",)
            )  # fmt: skip
            after = (*reads, f"{name}cross.output")
        ends = []
        for what, tokens, read in (("query", queries, after), ("text", text, reads)):
            if tokens:
                products += model.mlp(f"{name}{what}_mlp.", f"{path}.{what}_mlp", rows * tokens, read)
                ends.append(f"{name}{what}_mlp.down")
        reads = (*after, *ends)
    below = model.trains(*(f"connectors.image.{each}" for each in ("query_tokens", "norm", "word", "position")))
    outside = {*_features(model), *({CARRY} if below else ())}
    return model.stack("connectors.image", products, config.layers // config.frequency, outside, reads)


def blip2_stage1(model: Model) -> Iterator[Block]:
    """Three passes of the Q-Former over one encoded picture a row, and the heads of contrast, matching and captioning."""
    data, config, path = model.stage.data, model.config("connectors.image"), "connectors.image"
    rows, text, queries = data.rows, data.query_length, config.queries
    yield from vit(model, model.config("encoders.image"), rows)
    for times, length, pictures in ((1, text, 1), (1, text, 0), (3, text, 3)):
        yield qformer(model, config, times * rows, length, pictures * rows)
    trained = model.trains("connectors.image")
    hidden = frozenset({"hidden"} if trained else ())
    pairs = 2 * rows * rows * queries * config.projection
    words = f"{path}.word_embedding.table"
    products = (
        *model.linear("images", f"{path}.heads.image_projection", rows * queries, ("hidden",), linear=True),
        *model.linear("texts", f"{path}.heads.text_projection", rows, ("hidden",), linear=True),
        Product("image_to_text", pairs, ("images",)),  # the keys of each direction carry no gradient
        Product("text_to_image", pairs, ("texts",)),
        *model.linear("match", f"{path}.heads.matching", 3 * rows * queries, ("hidden",), linear=True),
        *model.linear("transform", f"{path}.heads.transform", rows * text, ("hidden",), linear=True),
        Product("caption", 2 * rows * text * math.prod(model.shapes[words]), ("transform",), words),
    )
    yield Block(path, products, gradients=hidden)


def _features(model: Model) -> frozenset[str]:
    return frozenset({"features"} if model.trains("encoders.image") else ())


CONNECTORS: dict[type, Callable[[Model, Any], Iterator[Block]]] = {
    LinearConfig: linear_connector,
    QFormerConfig: qformer_connector,
}
LLMS: dict[type, Callable[[Model, Any, set[str]], Iterator[Block]]] = {
    LlamaConfig: decoder,
    OPTConfig: decoder,
    PaLMConfig: decoder,
    T5Config: encoder_decoder,
}
OBJECTIVES: dict[str, Callable[[Model], Iterator[Block]]] = {
    "language_modelling": language_modelling,
    "blip2_stage1": blip2_stage1,
}
