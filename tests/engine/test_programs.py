"""A recorded graph computes what Python computed, though it writes into no tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from captum_transformer_lrp.engine.programs.regions import Function, Program, as_it_is
from captum_transformer_lrp.engine.programs.replays import Replays
from captum_transformer_lrp.engine.programs.sizes import Size, of_any_size, samples
from captum_transformer_lrp.engine.programs.trace import Trace, traced
from captum_transformer_lrp.engine.programs.weights import Weights
from captum_transformer_lrp.errors import ExplanationError


def values(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_row(x: Tensor) -> Tensor:
    y = x * 2
    y[1] = x[0]
    return y


def a_row_of_a_row(x: Tensor) -> Tensor:
    y = x * 2
    y[1:][::2][:, 1:3] += 1
    return y


def through_a_transposed_view(x: Tensor) -> Tensor:
    y = x.clone()
    y.t()[2].mul_(x[:, 0])
    return y


def what_another_view_reads(x: Tensor) -> Tensor:
    y = x.clone()
    flat, last, all_of_it = y.view(-1), y[..., -1], y.detach()
    y[:, 3:].neg_()
    return flat.sum() + last * all_of_it[:, 0]


def a_view_that_reads_other_elements(x: Tensor) -> Tensor:
    y = x.clone()
    left = y[:, :3]
    y[:, 3:] = 0
    return left + y[:, 3:]


def overlapping_views(x: Tensor) -> Tensor:
    y = x.clone().view(-1)
    windows = y.as_strided((10, 3), (2, 1))
    y[5:9].fill_(3)
    return windows * 2


def an_expanded_view(x: Tensor) -> Tensor:
    y = x[:, :1].clone()
    wide = y.expand(-1, 5)
    y.add_(1)
    return wide.sin()


def another_dtype(x: Tensor) -> Tensor:
    y = x.clone()
    return y.lt_(0) + y.gt_(0.5)


def of_another_dtype(x: Tensor) -> Tensor:
    return torch.zeros(4, 6, dtype=torch.float32).add_(x).double() + x.float().mul_(x).double()


def masks(x: Tensor) -> Tensor:
    kept = x > 0
    kept &= x < 1
    kept[0] |= x[0] < -1
    return x.masked_fill(~kept, 0).masked_fill_(x > 0.5, 2)


def the_argument_out(x: Tensor) -> Tensor:
    y, z = torch.empty(0, dtype=x.dtype), torch.zeros_like(x)
    torch.add(x, 1, out=y)
    torch.mul(x, y, out=z)
    largest, place = torch.empty(4, dtype=x.dtype), torch.empty(4, dtype=torch.long)
    torch.max(x, dim=1, out=(largest, place))
    return y + z + largest[:, None] + place[:, None]


def other_shapes(x: Tensor) -> Tensor:
    y = x.clone().unsqueeze_(0).transpose_(0, 1).squeeze_(1)
    return y.t_() @ x


def by_index(x: Tensor) -> Tensor:
    y = x.clone()
    y[[0, 0, 2], [1, 1, 3]] = x[0, :3]
    y.index_put_((torch.tensor([1, 1]),), x[:2], accumulate=True)
    y.scatter_(1, torch.tensor([[0], [1], [2], [3]]), x[:, :1] * 5)
    return y.index_add_(0, torch.tensor([3]), x[:1]).index_fill_(1, torch.tensor([5]), 7)


def a_new_constant(x: Tensor) -> Tensor:
    scale = torch.tensor([1.0, 2.0], dtype=x.dtype)
    scale[0] = x[0, 0]
    return x * scale.sum()


def many_times(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for row, one in zip(y, x, strict=True):
        row.copy_(one.cumsum(0))
        row[1:].sub_(row[:-1].clone())
    return y.relu_()


def several_results(x: Tensor) -> Tensor:
    first, second = x.split(3, 1)
    values, places = first.sort(1)
    return values.mul_(2) + second.gather(1, places)


def nothing_at_all(x: Tensor) -> Tensor:
    y = x.clone()
    y[2:2, 1:] = x[:0, 1:]
    return y


def other_data(x: Tensor) -> Tensor:
    y = torch.zeros(2)
    y.data = x.sin()
    y[0] = 1
    return y


def data_that_leave_their_memory(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.data = x.sin()
    later = [torch.zeros_like(x) for _ in range(20)]  # one of them is where y was
    for one in later:
        one.add_(x)
    return y + sum(later)


def into_another_layout(x: Tensor) -> Tensor:
    for _ in range(3):
        y = torch.empty(6, 4, dtype=x.dtype).t()
        y.copy_(x)
        x = (y + 1).as_strided((4, 6), (1, 4)).sin()
    return x


WRITES = [
    a_row, a_row_of_a_row, through_a_transposed_view, what_another_view_reads,
    a_view_that_reads_other_elements, overlapping_views, an_expanded_view, another_dtype,
    of_another_dtype, masks, the_argument_out, other_shapes, by_index, a_new_constant, many_times,
    several_results, nothing_at_all, other_data, data_that_leave_their_memory, into_another_layout,
]  # fmt: skip


def computed(trace: Trace, example: Tensor, x: Tensor) -> Tensor:
    """What a recorded graph returns, if all its checks hold."""
    found, *checks = Program(trace.graph, [example], as_it_is)(x)
    assert all(checks)
    return found


@pytest.mark.parametrize("function", WRITES, ids=lambda one: one.__name__)
def test_writes_into_tensors_are_written_down_without_writing(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST_NODES", "FEWEST_NODES"):  # a part for each operation that is repeated
        monkeypatch.setattr(f"captum_transformer_lrp.engine.programs.regions.{name}", 1)
    trace = traced(function, [values()])
    assert not any(
        node.target._schema.is_mutable
        for node in trace.graph.graph.nodes
        if hasattr(node.target, "_schema")
    )
    assert torch.equal(trace.found[0], function(values()))
    for seed in range(3):
        assert torch.equal(computed(trace, values(), values(seed)), function(values(seed)))


def test_what_is_computed_twice_is_computed_once() -> None:
    trace = traced(lambda x: x.exp() + x.exp() * 1 + x.exp() * 1.0, [values()])
    names = [str(node.target) for node in trace.graph.graph.nodes]
    assert names.count("aten.exp.default") == 1
    assert names.count("aten.mul.Tensor") == 2, "an integer and a float may give another type"


def repeated(x: Tensor) -> Tensor:
    for _ in range(4):
        for factor in range(30):
            x = (x * factor).sin()
    return x


@pytest.mark.parametrize(("most", "parts"), [(240, 1), (239, 4)])
def test_few_operations_are_one_part(
    monkeypatch: pytest.MonkeyPatch, most: int, parts: int
) -> None:
    """Those of a small model, for a call of a part takes as long as its operations."""
    monkeypatch.setattr("captum_transformer_lrp.engine.programs.regions.MOST_NODES", most)
    program = Program(traced(repeated, [values()]).graph, [values()], as_it_is)
    assert len(program._steps) == parts
    assert torch.equal(program(values(1))[0], repeated(values(1)))


def test_a_compiler_may_choose_other_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each region gets its inputs in the layout that it was compiled for."""
    monkeypatch.setattr("captum_transformer_lrp.engine.programs.regions.MOST_NODES", 0)
    looked_at = []

    def compiler(graph: fx.GraphModule, like: Sequence[Tensor]) -> Function:
        def compiled(*given: Tensor) -> list[Tensor]:
            for one, other in zip(given, like, strict=True):
                assert one.stride() == other.stride()
                looked_at.append(one)
            return [one.t().contiguous().t() for one in graph(*given)]

        return compiled

    program = Program(traced(repeated, [values()]).graph, [values()], compiler)
    assert torch.equal(program(values(1))[0], repeated(values(1)))
    assert len(looked_at) > 1


@pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="this PyTorch has no MKL or no oneDNN",
)
def test_another_library_may_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what it cannot do: a sum with a whole matrix, a product of float64."""
    monkeypatch.setattr("captum_transformer_lrp.rules.products.onednn_uses_more", lambda: True)
    monkeypatch.setattr("captum_transformer_lrp.rules.products.FEWEST_MULTIPLICATIONS", 1)

    def products(x: Tensor) -> Tensor:
        plain = x @ x.t()
        with_bias = torch.addmm(x[0], plain.t(), x)
        scaled = torch.addmm(x[0], plain, x, alpha=2)
        whole = torch.addmm(x, plain, x)
        double = (x.double() @ x.double().t()).float() @ x
        return with_bias + scaled + whole + double + plain.sum()

    first, other = values().float(), values(1).float()
    trace = traced(products, [first])
    program = Program(trace.graph, [first], as_it_is, chooses_products=True)
    torch.testing.assert_close(program(other)[0], products(other))
    (step,) = program._steps
    used = [str(node.target) for node in step.function.graph.nodes]
    assert used.count("captum_transformer_lrp.product.default") == 3
    assert used.count("aten.addmm.default") == 2
    assert used.count("aten.mm.default") == 1
    named = [str(node.target) for node in trace.graph.graph.nodes]
    assert "captum_transformer_lrp.product.default" not in named, "what is exported"


def test_random_numbers_are_not_shared() -> None:
    trace = traced(lambda x: torch.rand_like(x) - torch.rand_like(x) + 0 * x, [values()])
    assert computed(trace, values(), values()).std() > 0.1


def test_a_tensor_that_the_graph_has_read_cannot_be_written_into() -> None:
    calls = torch.zeros((), dtype=torch.float64)

    def counting(x: Tensor) -> Tensor:
        y = x + calls
        calls.add_(1)
        return y * calls

    with pytest.raises(ExplanationError, match=r"before the call \(aten.add_.Tensor\)"):
        traced(counting, [values()])


IMPOSSIBLE: dict[str, Callable[[Tensor], Tensor]] = {
    "another size": lambda y: y.resize_(2, 3),
    "another memory": lambda y: y.set_(values()),
    "read as another type": lambda y: torch.view_as_complex(y.view(4, 3, 2)).mul_(1j),
}


@pytest.mark.parametrize("write", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_write_that_no_graph_can_do_is_refused(write: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExplanationError, match="a graph cannot write into"):
        traced(lambda x: write(x.clone()).abs(), [values()])


def heads(x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    split = x.reshape(batch, tokens, 3, 2).transpose(1, 2).reshape(batch * 3, tokens, 2)
    return (split @ split.mT).softmax(-1).reshape(batch, 3, tokens, tokens).mean(1)


def numbers_of_examples(x: Tensor) -> Tensor:
    rows = torch.tensor([float(number) for number in range(len(x))], dtype=x.dtype)
    return x * rows[:, None, None] + torch.full((len(x), 1, 1), len(x))


def positions(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1], dtype=x.dtype)
    distance = places[:, None] - places
    return torch.tril(distance.cos()) @ x


def one_class_token(x: Tensor) -> Tensor:
    y = torch.cat([torch.ones(1, 1, 6, dtype=x.dtype).expand(len(x), -1, -1), x], 1)
    y[:, 1:] *= 2
    y[:, 0] += x[:, -1]
    return y.flatten(0, 1)[:: x.shape[1] + 1] + y[:, x.shape[1] - 2]


def a_small_batch_that_looks_like_something_else(x: Tensor) -> Tensor:
    """Two zeros that are one in the smaller batch: (2, 6) for both."""
    return x[:, 0] + x.new_zeros(len(x), 6) + x.new_zeros(2, 6).sum()


SIZES = [Size(0, 0, 2), Size(0, 1, 4)]


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:], SIZES], ids=["batch", "tokens", "both"])
@pytest.mark.parametrize(
    "function",
    [heads, numbers_of_examples, positions, one_class_token,
     a_small_batch_that_looks_like_something_else],
    ids=lambda one: one.__name__,
)  # fmt: skip
def test_a_graph_serves_any_size(function: Callable[[Tensor], Tensor], sizes: list[Size]) -> None:
    def texts(values: list[int], seed: int) -> Tensor:
        shape = [2, 4, 6]
        for one, value in zip(sizes, values, strict=True):
            shape[one.dim] = value
        noise = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    graphs = {
        some: traced(
            function,
            [texts([one.smaller + (n in some) for n, one in enumerate(sizes)], 0)],
            shares=False,
        ).graph
        for some in samples(sizes)
    }
    graph = of_any_size(graphs, sizes)
    for values in ([1, 5], [3, 8], [9, 2]):
        x = texts(values[: len(sizes)], 1)
        torch.testing.assert_close(graph(x)[0], function(x), rtol=1e-12, atol=1e-12)


def a_mean_over_the_batch(x: Tensor) -> Tensor:
    return x * (1 / len(x))


def other_operations(x: Tensor) -> Tensor:
    return x.sin() if len(x) > 2 else x.cos()


def example_by_example(x: Tensor) -> Tensor:
    return torch.stack([one.sin() for one in x])


def constants(x: Tensor) -> Tensor:
    return x * torch.tensor([[0.5], [1], [4]][: len(x)], dtype=x.dtype)


def another_tensor(x: Tensor) -> Tensor:
    y = [x.sin(), x.cos(), x.sin().cos()]
    return y[len(x) - 2] + y[1]


@pytest.mark.parametrize(
    "function",
    [a_mean_over_the_batch, other_operations, example_by_example, constants, another_tensor],
    ids=lambda one: one.__name__,
)
def test_what_is_not_linear_in_the_size_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    size = Size(0, 0, 2)
    graphs = {
        some: traced(function, [torch.randn(2 + len(some), 6)], shares=False).graph
        for some in samples([size])
    }
    with pytest.raises(ExplanationError, match="another size leads to"):
        of_any_size(graphs, [size])


def test_constants_are_moved_once_to_where_the_rest_is() -> None:
    """An index on the processor would be copied in each call, which no CUDA graph can do."""
    places = torch.tensor([2, 0])

    def chosen(x: Tensor) -> Tensor:
        return x[places] * 2

    given = torch.empty(3, 4, device="meta")
    program = Program(traced(chosen, [given]).graph, [given], as_it_is)
    assert program.devices == {torch.device("meta")}
    assert {one.device.type for one in program._constants} == {"meta"}
    (found,) = program(given)
    assert found.shape == (2, 4)


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (("cuda:0", "cpu"), "it computes on cpu and cuda:0"),
        pytest.param(
            ("cuda:999",),
            "",
            marks=pytest.mark.skipif(
                not torch.backends.cuda.is_built(), reason="this PyTorch knows no GPU"
            ),
        ),
    ],
)
def test_a_program_that_is_no_cuda_graph_is_itself_with_a_warning(
    devices: Sequence[str], reason: str
) -> None:
    program = Program(traced(torch.sin, [values()]).graph, [values()], as_it_is)
    assert Replays().of(program, [values()]) is program
    program.devices = set(map(torch.device, devices))
    with pytest.warns(UserWarning, match=f"without a CUDA graph.*: {reason}"):
        assert Replays().of(program, [values()]) is program


def written_into(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)


def in_other_memory(model: nn.Module) -> None:
    model.get_parameter("0.weight").data = torch.ones(2, 2)


def another_buffer(model: nn.Module) -> None:
    model.register_buffer("scale", torch.ones(1))


def another_module(model: nn.Module) -> None:
    model.add_module("0", nn.Linear(2, 2))


def without_bias(model: nn.Module) -> None:
    model.get_submodule("0").register_parameter("bias", None)


@pytest.mark.parametrize(
    "change", [written_into, in_other_memory, another_buffer, another_module, without_bias]
)
def test_changed_weights_are_seen(change: Callable[[nn.Module], None]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    with torch.inference_mode():
        constant = torch.ones(2)  # has no count of writes
    weights = Weights(model, [model.get_parameter("0.weight"), constant])
    model(torch.ones(1, 2))
    assert not weights.changed()
    change(model)
    assert weights.changed()


def test_a_function_has_the_weights_of_its_graph() -> None:
    constant = torch.ones(2)
    weights = Weights(torch.sin, [constant])
    assert not weights.changed()
    constant.add_(1)
    assert weights.changed()
