"""After an explanation, successful or not, each attribute, buffer and argument is what it was.

Each model here writes to itself in its forward pass, in one of the ways that people do.  Beside it
stands the plain spelling of the same function, which writes nothing: both have the same map.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

from captum_transformer_lrp import (
    AttentionRollout,
    BiAttention,
    TransformerAttribution,
    TransformerLRP,
    compare,
    explain_continuation,
)
from captum_transformer_lrp.errors import ExplanationError
from tests.attr.methods import each_once

TOKENS, WIDTH = 5, 8


class Slotted:
    __slots__ = ("last", "seen")

    def __init__(self) -> None:
        self.seen = 0


class Net(nn.Module):
    """One attention over tokens that ``step(self, tokens)`` has changed."""

    shared: ClassVar[dict[Any, Any]] = {}
    built = 0

    def __init__(self, step: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(1 + torch.rand(WIDTH))
        self.register_buffer("buffer", 1 + torch.rand(TOKENS, WIDTH))
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("large", torch.ones(40_000))
        self.register_buffer("dropped", torch.ones(WIDTH), persistent=False)
        self.row = self.buffer[1]  # a view
        self.array = self.dropped.numpy()
        self.table: Any = None
        self.calls = 0
        self.log: list[Any] = []
        self.ring: deque[Any] = deque([1, 2], maxlen=2)
        self.tables: dict[Any, Any] = {}
        self.sets: set[Any] = {1}
        self.settings = SimpleNamespace(history=OrderedDict(a=[1]))
        self.slots = Slotted()
        self.double().eval()
        self.array = self.dropped.numpy()
        self.row = self.buffer[1]
        self.step = step

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        x = self.step(self, self.embed(x))
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((x + (q @ k.mT).softmax(-1) @ v)[:, 0])


X = torch.randn(2, TOKENS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

Step = Callable[[Any, Tensor], Tensor]
STEPS: dict[str, tuple[Step, Step]] = {}
"""For each way to write: the step that writes, and the same without writing."""


def step(plain: Step) -> Callable[[Step], Step]:
    def enter(writing: Step) -> Step:
        STEPS[writing.__name__.replace("_", " ").strip()] = writing, plain
        return writing

    return enter


def places(net: Any, h: Tensor) -> Tensor:
    return torch.arange(h.shape[1], dtype=h.dtype)[:, None].sin()


@step(lambda net, h: h + places(net, h))
def a_table_on_the_first_call(net: Any, h: Tensor) -> Tensor:
    if net.table is None:
        net.table = places(net, h)
    return h + net.table


@step(lambda net, h: h + places(net, h))
def a_buffer_registered_in_forward(net: Any, h: Tensor) -> Tensor:
    net.register_buffer("late", places(net, h))
    return h + net.late


@step(lambda net, h: h + places(net, h))
def a_table_in_a_dictionary(net: Any, h: Tensor) -> Tensor:
    key = h.shape[1]
    if key not in net.tables:
        net.tables[key] = places(net, h)
    return h + net.tables[key]


@step(lambda net, h: h + places(net, h))
def a_table_that_the_class_holds(net: Any, h: Tensor) -> Tensor:
    key = h.shape[1]
    if key not in Net.shared:
        Net.shared[key] = places(net, h)
    Net.built += 1
    return h + Net.shared[key]


@functools.lru_cache
def cached_places(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float64)[:, None].sin()


@step(lambda net, h: h * (1 + 0.1 * h.detach().mean()))
def an_average_that_is_reassigned(net: Any, h: Tensor) -> Tensor:
    net.average = 0.9 * net.average + 0.1 * h.detach().mean()
    return h * (1 + net.average)


@step(lambda net, h: h * (1 + 0.1 * h.detach().mean()))
def an_average_in_place(net: Any, h: Tensor) -> Tensor:
    net.average.mul_(0.9).add_(0.1 * h.detach().mean())
    return h * (1 + net.average)


@step(lambda net, h: h * 2)
def a_counter_in_a_buffer(net: Any, h: Tensor) -> Tensor:
    net.average += 1
    net.average.add_(1)
    return h * net.average


@step(lambda net, h: h * (net.buffer * 3) * net.buffer)
def a_buffer_that_is_read_before_and_after(net: Any, h: Tensor) -> Tensor:
    h = h * net.buffer
    net.buffer.mul_(3)
    return h * net.buffer


@step(lambda net, h: h * (net.buffer * 2))
def the_data_of_a_buffer(net: Any, h: Tensor) -> Tensor:
    net.buffer.data.mul_(2)
    return h * net.buffer


@step(lambda net, h: h * (net.scale.detach() / 2))
def the_data_of_a_parameter(net: Any, h: Tensor) -> Tensor:
    net.scale.data.div_(2)
    return h * net.scale.detach()


@step(lambda net, h: h * (net.buffer + 1))
def data_that_are_exchanged(net: Any, h: Tensor) -> Tensor:
    net.buffer.data = net.buffer.data + 1
    return h * net.buffer


@step(lambda net, h: h * (net.buffer + 2) * (net.average + 2))
def several_tensors_at_once(net: Any, h: Tensor) -> Tensor:
    torch._foreach_add_([net.buffer, net.average], 2)
    return h * net.buffer * net.average


@step(lambda net, h: h * (net.buffer * net.buffer))
def an_output_argument(net: Any, h: Tensor) -> Tensor:
    torch.mul(net.buffer, net.buffer, out=net.buffer)
    return h * net.buffer


@step(lambda net, h: h * torch.cat([net.buffer[:1], net.buffer[1:2] * 4, net.buffer[2:]]))
def a_view_that_the_model_holds(net: Any, h: Tensor) -> Tensor:
    net.row.mul_(4)
    return h * net.buffer


@step(lambda net, h: h * torch.cat([net.buffer[:4], 7 * torch.ones_like(net.buffer[:1])]))
def a_view_of_a_view(net: Any, h: Tensor) -> Tensor:
    net.buffer.view(-1)[4 * WIDTH :][:] = 7
    return h * net.buffer


@step(lambda net, h: h + torch.cat([h[:1], h[:1]]).detach())
def activations_in_a_buffer(net: Any, h: Tensor) -> Tensor:
    net.buffer.copy_(h[0].detach())
    return h + net.buffer


@step(lambda net, h: h * (net.buffer + net.buffer))
def an_operator_of_the_dispatcher(net: Any, h: Tensor) -> Tensor:
    torch.ops.aten.add_.Tensor(net.buffer, net.buffer)
    return h * net.buffer


@torch.library.custom_op("captum_transformer_lrp_tests::double_it", mutates_args=("values",))
def double_it(values: Tensor) -> None:
    values.mul_(2)


@step(lambda net, h: h * (net.buffer * 2))
def a_custom_operator(net: Any, h: Tensor) -> Tensor:
    double_it(net.buffer)
    return h * net.buffer


@step(lambda net, h: h * 3)
def the_memory_given_to_numpy(net: Any, h: Tensor) -> Tensor:
    values = net.average.numpy()
    values += 3
    return h * net.average


@step(lambda net, h: h)
def containers_of_all_kinds(net: Any, h: Tensor) -> Tensor:
    net.log.append(h)
    net.ring.append(h)
    net.sets |= {2, "x"}
    net.settings.history["b"] = h
    net.settings.history["a"].append(2)
    net.settings.last = h
    net.slots.seen += 1
    net.slots.last = h
    net.calls += 1
    net.tables.update(x=1)
    return h


@step(lambda net, h: h * 2)
def attributes_that_come_and_go(net: Any, h: Tensor) -> Tensor:
    del net.dropped
    del net.log
    net.training = True
    net.scale = nn.Parameter(torch.ones(WIDTH).double())
    net.head = copy.deepcopy(net.head)
    net.extra = nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: None)
    return h * 2


@step(lambda net, h: h)
def flags_and_gradients(net: Any, h: Tensor) -> Tensor:
    net.scale.register_hook(lambda grad: grad * 0)
    net.scale.requires_grad_(False)
    net.buffer.requires_grad = True
    net.scale.grad = torch.ones_like(net.scale)
    net.scale.note = "seen"
    return h


def bounded(row: Tensor) -> Tensor:
    """To half of its norm, as PyTorch does it."""
    return row * (row.norm() / 2 / (row.norm() + 1e-7))


@step(lambda net, h: h + bounded(net.scale.detach()))
def an_embedding_of_bounded_norm(net: Any, h: Tensor) -> Tensor:
    table = net.scale.detach()[None]
    return h + F.embedding(torch.tensor([0]), table, max_norm=float(table.norm()) / 2)


UNANNOUNCED: dict[str, Step] = {}


def unannounced(writing: Step) -> Step:
    UNANNOUNCED[writing.__name__.replace("_", " ")] = writing
    return writing


@unannounced
def code_that_pytorch_does_not_see(net: Any, h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        net.buffer.add_(1)
    return h * net.buffer


@unannounced
def an_array_over_a_buffer(net: Any, h: Tensor) -> Tensor:
    net.array += 1
    return h * net.dropped


def described(value: Any, seen: set[int] | None = None) -> Any:
    """What an object is and holds, down to the bytes of tensors; independent of the library."""
    seen = set() if seen is None else seen
    if isinstance(value, (Tensor, np.ndarray)):
        if isinstance(value, np.ndarray):
            return id(value), value.tobytes()
        own = sorted(vars(value).items())
        hooks = len(value._backward_hooks or ())
        held = None if value.grad is None else described(value.grad)
        bits = value.detach().numpy().tobytes()
        return id(value), value._version, value.requires_grad, hooks, held, own, bits
    if value is None or isinstance(value, (int, float, str, bool, type)):
        return value
    if id(value) in seen:
        return id(value)
    seen.add(id(value))
    if isinstance(value, dict):
        return id(value), [(key, described(one, seen)) for key, one in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return id(value), [described(one, seen) for one in value]
    if isinstance(value, set):
        return id(value), sorted(map(str, value))
    held = [(name, described(getattr(value, name, None), seen)) for name in slots_of(value)]
    return id(value), held, described(getattr(value, "__dict__", None), seen)


def slots_of(value: Any) -> tuple[str, ...]:
    return getattr(type(value), "__slots__", ())


def state(*objects: Any) -> Any:
    shared = (Net.shared, Net.built, parametrize._cache, cached_places.cache_info().currsize)
    return described([*objects, *shared])[1]


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "TransformerAttribution": lambda net: TransformerAttribution(net).attribute(X, 1),
    "explain": lambda net: TransformerAttribution(net).explain(X, 1).attributions,
    "a function": lambda net: TransformerAttribution(lambda x: net(x)).attribute(X, 1),
    "a partial function": lambda net: TransformerAttribution(functools.partial(net)).attribute(
        X, 1
    ),
    "TransformerLRP": lambda net: TransformerLRP(net).attribute(X, 1),
    "AttentionRollout": lambda net: AttentionRollout(net).attribute(X, 1),
    "BiAttention": lambda net: BiAttention(net, n_steps=2).attribute(X, 1),
    "chunks": lambda net: TransformerAttribution(net).attribute(X, 1, internal_batch_size=2),
    "compare": lambda net: compare(net, X, [1], ["transformer_lrp", "raw_attention"])[
        "transformer_lrp"
    ]["1"],
}


@pytest.mark.parametrize(("method", "way"), each_once(STEPS, METHODS, times=3))
def test_a_model_that_writes_is_unchanged_and_explained_as_if_it_did_not(
    way: str, method: str
) -> None:
    writing, plain = STEPS[way]
    net, explain = Net(writing), METHODS[method]
    before = state(net, X)
    found = explain(net)
    assert state(net, X) == before
    expected = explain(Net(plain))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(explain(net), found)  # and so is the second explanation


@pytest.mark.parametrize("way", STEPS)
def test_a_checkpointed_model_that_writes_is_unchanged_and_explained(way: str) -> None:
    writing, plain = STEPS[way]
    net = Net(writing)
    before = state(net, X)
    found = TransformerAttribution(net, checkpointing=True).attribute(X, 1)
    assert state(net, X) == before
    expected = TransformerAttribution(Net(plain)).attribute(X, 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", STEPS)
def test_a_model_that_fails_after_it_has_written_is_unchanged(way: str) -> None:
    def failing(net: Any, h: Tensor) -> Tensor:
        STEPS[way][0](net, h)
        raise ValueError("on purpose")

    net = Net(failing)
    before = state(net, X)
    with pytest.raises(ValueError, match="on purpose"):
        TransformerAttribution(net).attribute(X, 1)
    with pytest.raises(ValueError, match="on purpose"):
        compare(net, X, [1], ["transformer_attribution"])
    assert state(net, X) == before


@pytest.mark.parametrize("way", UNANNOUNCED)
def test_a_write_that_nobody_announces_is_undone_and_refused(way: str) -> None:
    net = Net(UNANNOUNCED[way])
    values = {name: one.clone() for name, one in net.state_dict().items()}
    array = net.array.copy()
    with pytest.raises(ExplanationError, match=r"(buffer|dropped).*announces to nobody.*put back"):
        TransformerAttribution(net).attribute(X, 1)
    assert all(torch.equal(one, values[name]) for name, one in net.state_dict().items())
    assert np.array_equal(net.array, array)
    compare(net, X, [1], ["saliency"])  # whose values nobody needs later
    assert all(torch.equal(one, values[name]) for name, one in net.state_dict().items())


def test_a_write_that_cannot_be_undone_says_so() -> None:
    def inside(net: Any, h: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            net.large.add_(1)
        return h

    with pytest.raises(ExplanationError, match=r"large.*could not be put back.*deepcopy"):
        TransformerAttribution(Net(inside)).attribute(X, 1)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (lambda net, h: (torch._foreach_mul_([h], 2), h)[1],
         "calls torch._foreach_mul_, which may write into activations.*write x = f"),
        (lambda net, h: (torch.ops.aten.mul_.Scalar(h, 2), h)[1],
         "calls aten::mul_.Scalar, which may write into activations.*write x = f"),
        (lambda net, h: (setattr(h, "data", h.detach() * 2), h)[1],
         "puts other memory in the place of an activation.*make a new tensor"),
    ],
    ids=["foreach", "dispatcher", "data"],
)  # fmt: skip
def test_activations_written_by_a_call_without_counterpart_are_refused(
    inside: Step, message: str
) -> None:
    with pytest.raises(ExplanationError, match=message):
        TransformerAttribution(Net(inside)).attribute(X, 1)


def test_a_cached_function_keeps_nothing_of_an_explanation() -> None:
    cached_places.cache_clear()
    net = Net(lambda net, h: h + cached_places(h.shape[1]))
    TransformerAttribution(net).attribute(X, 1)
    assert cached_places.cache_info().currsize == 0


def test_captums_methods_in_a_comparison_change_nothing() -> None:
    methods = ["saliency", "integrated_gradients", "feature_ablation", "transformer_attribution"]
    for way in ("a counter in a buffer", "the data of a parameter", "several tensors at once"):
        net = Net(STEPS[way][0])
        before = state(net, X)
        maps = compare(net, X, [1], methods, options={"integrated_gradients": {"n_steps": 2}})
        assert state(net, X) == before
        plain = compare(Net(STEPS[way][1]), X, [1], ["saliency"])
        assert torch.allclose(maps["saliency"]["1"], plain["saliency"]["1"])


def test_a_large_buffer_is_put_back_after_a_comparison() -> None:
    def inside(net: Any, h: Tensor) -> Tensor:
        net.large.mul_(2)
        return h * net.large[0]

    net = Net(inside)
    before = state(net)
    compare(net, X, [1], ["saliency", "raw_attention"])
    assert state(net) == before


@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm_keeps_its_vectors(training: bool) -> None:
    net = Net(lambda net, h: h)
    spectral_norm(net.qkv)
    net.double().train(training)
    before = state(net)
    TransformerAttribution(net).attribute(X, 1)
    assert state(net) == before


def test_parametrized_weights_that_are_cached_keep_their_gradient() -> None:
    """Or else what is trained in the same block gets none."""
    net = Net(lambda net, h: h)
    parametrize.register_parametrization(net.qkv, "weight", nn.Identity())
    with parametrize.cached():
        TransformerAttribution(net).attribute(X, 1)
        assert parametrize._cache == {}
        net(X).sum().backward()
    assert net.qkv.parametrizations.weight.original.grad is not None


def test_freed_buffers_are_not_taken_for_others() -> None:
    """A fresh tensor may have the id of a buffer that the model has let go of."""

    def inside(net: Any, h: Tensor) -> Tensor:
        for _ in range(8):
            grid = torch.arange(5.0, dtype=h.dtype)
            grid -= 2
            net.buffer = grid[:, None] * net.scale.detach()
            h = h + net.buffer
        return h

    for _ in range(10):
        net = Net(inside)
        before = state(net)
        TransformerAttribution(net).attribute(X, 1)
        assert state(net) == before


def test_a_module_that_is_used_twice_counts_once_more_each_time() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def forward(self, h: Tensor) -> Tensor:
            self.count += 1
            return h * self.count

    net = Net(lambda net, h: net.counter(net.counter(h)))
    net.counter = Counter()
    before = state(net)
    found = TransformerAttribution(net).attribute(X, 1)
    assert state(net) == before
    assert torch.allclose(found, TransformerAttribution(Net(lambda _, h: h * 2)).attribute(X, 1))


def test_several_threads_leave_a_model_that_writes_as_it_was() -> None:
    names = ["an average that is reassigned", "a counter in a buffer", "a table on the first call"]
    for name in names:
        net = Net(STEPS[name][0])
        before = state(net)
        expected = TransformerAttribution(net).attribute(X, 1)
        found: list[Tensor] = []
        method = TransformerAttribution(net)

        def work(method: Any = method, found: list[Tensor] = found) -> None:
            found.extend(method.attribute(X, 1) for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert state(net) == before
        assert len(found) == 20
        assert all(torch.equal(one, expected) for one in found)


# -- arguments ----------------------------------------------------------------------------------


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dynamic", "of the model", "static"])
@pytest.mark.parametrize("method", [TransformerAttribution, TransformerLRP])
def test_a_cache_of_keys_and_values_does_not_grow(kind: str, method: type) -> None:
    model = language_model()
    cache: Any = DynamicCache()
    if kind == "of the model":
        cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=6)
    with torch.no_grad():
        cache = model(IDS[:, :3], use_cache=True, past_key_values=cache).past_key_values
        plain = model(IDS[:, 3:], past_key_values=copy.deepcopy(cache)).logits
    before = described(cache)
    found = [
        method(model).attribute(
            IDS[:, 3:], (0, 4), {"past_key_values": cache}, internal_batch_size=1
        )
        for _ in range(2)
    ]
    assert described(cache) == before
    assert torch.equal(found[0], found[1])
    with torch.no_grad():
        assert torch.equal(model(IDS[:, 3:], past_key_values=cache).logits, plain)


@pytest.mark.filterwarnings("ignore")
def test_a_continuation_leaves_the_cache_that_it_was_given() -> None:
    model = language_model()
    cache = DynamicCache()
    before = described(cache)
    extra = {"past_key_values": cache, "use_cache": True}
    maps = explain_continuation(
        TransformerAttribution(model), IDS[:, :2], IDS[:, 2:], additional_forward_args=extra
    )
    assert described(cache) == before
    plain = explain_continuation(TransformerAttribution(model), IDS[:, :2], IDS[:, 2:])
    assert torch.allclose(maps, plain)


def write_mask(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    mask.mul_(2)
    return x * mask


def write_list(net: Any, x: Tensor, held: list[Any]) -> Tensor:
    held.append(x)
    held[0].add_(1)
    return x * held[0]


def write_dictionary(net: Any, x: Tensor, held: dict[str, Any]) -> Tensor:
    held["factor"][:] = 3
    held["new"] = x
    return x * held.pop("factor")


def write_object(net: Any, x: Tensor, held: Any) -> Tensor:
    held.count += 1
    held.values.data.fill_(4)
    return x * held.values * held.count


@pytest.mark.parametrize(
    ("write", "make"),
    [
        (write_mask, lambda: torch.ones(TOKENS, 1).double()),
        (write_list, lambda: [torch.ones(TOKENS, 1).double(), "x"]),
        (write_dictionary, lambda: {"factor": torch.ones(TOKENS, 1).double(), "other": 1}),
        (write_object, lambda: SimpleNamespace(count=1, values=torch.ones(1).double())),
    ],
)
def test_arguments_that_a_model_writes_are_unchanged(write: Any, make: Callable[[], Any]) -> None:
    net, given = Net(lambda net, h: h), make()

    def forward(x: Tensor, held: Any) -> Tensor:
        return net(write(net, x, held))

    before = described(given)
    maps = [TransformerAttribution(forward).attribute(X, 1, (given,)) for _ in range(2)]
    assert described(given) == before
    assert torch.equal(maps[0], maps[1])


def forward_that_writes(write: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    net = Net(lambda net, h: h)

    def forward(x: Tensor) -> Tensor:
        write(x)
        return net(x)

    return forward


def test_inputs_that_a_model_writes_are_unchanged() -> None:
    given = X.clone()
    before = described(given)
    found = TransformerAttribution(forward_that_writes(lambda x: x.mul_(2))).attribute(given, 1)
    assert described(given) == before
    net = Net(lambda net, h: h)
    plain = TransformerAttribution(lambda x: net(2 * x)).attribute(given, 1)
    assert torch.allclose(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "write",
    [lambda x: x.data.mul_(2), lambda x: x.detach().numpy().fill(0)],
    ids=["data", "numpy"],
)
def test_inputs_that_are_written_round_pytorch_are_unchanged_and_refused(
    write: Callable[[Tensor], Any],
) -> None:
    given = X.clone()
    before = described(given)
    with pytest.raises(ExplanationError, match=r"embed reads a view.*changed in place since"):
        TransformerAttribution(forward_that_writes(write)).attribute(given, 1)
    assert described(given) == before


def test_token_ids_that_a_model_writes_are_unchanged() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).double().eval()
    given = torch.tensor([[5, -1, 7]])

    def forward(ids: Tensor) -> Tensor:
        ids[ids < 0] = 3
        return model(ids).logits[:, -1]

    found = TransformerAttribution(forward).attribute(given, 1)
    assert given.tolist() == [[5, -1, 7]]
    plain = TransformerAttribution(lambda ids: model(ids).logits[:, -1])
    expected = plain.attribute(torch.tensor([[5, 3, 7]]), 1)
    expected[0, 1] = 0  # the model's own token, which nobody has given
    assert torch.allclose(found, expected)


def test_parametrized_embeddings_are_read_by_the_model_alone() -> None:
    """No check of the model computes a weight, which may change its module."""
    reads = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            reads.append(weight.shape)
            return weight

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertForSequenceClassification(config).eval()
    parametrize.register_parametrization(model.bert.embeddings.word_embeddings, "weight", Counted())
    ids = torch.tensor([[1, 2, 3]])
    reads.clear()
    with torch.no_grad():
        model(ids)
    once = len(reads)
    reads.clear()
    TransformerAttribution(lambda ids: model(ids).logits).attribute(ids, target=1)
    assert len(reads) == once
