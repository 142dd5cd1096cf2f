"""The operator pair: derivatives of every order, PyTorch's own checks, what autograd keeps, strides."""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gala_cuda.backends.interface import Weights
from gala_cuda.backends.squash import Squash
from gala_cuda.testing import Case, Problem, composite, draw, flat_inputs, laid_out, on_flat_inputs, operator, results

DOUBLE = torch.float64
TINY = (2, 3, 2, 2)
FORMS = [
    pytest.param(Case(TINY, 2, DOUBLE), id="tanh"),
    pytest.param(Case(TINY, 2, DOUBLE, squash="sigmoid", map=True), id="sigmoid-map"),
    pytest.param(Case(TINY, 2, DOUBLE, bias=True, map=True), id="bias-map"),
    pytest.param(Case(TINY, 2, DOUBLE, residual=True), id="residual"),
    pytest.param(
        Case(TINY, 2, DOUBLE, layout="channels_last", squash="sigmoid", bias=True, residual=True, map=True),
        id="everything",
    ),
]


@pytest.mark.parametrize("case", FORMS)
def test_gradcheck(backend, case):
    problem = draw(case)
    assert gradcheck(on_flat_inputs(operator(backend), problem), flat_inputs(problem))


@pytest.mark.parametrize("case", FORMS)
def test_gradgradcheck(backend, case):
    problem = draw(case)
    assert gradgradcheck(on_flat_inputs(operator(backend), problem), flat_inputs(problem), fast_mode=True)


@pytest.mark.parametrize("case", FORMS)
def test_second_and_third_derivatives_are_the_composites(backend, case):
    """Each order is the gradient of the squared norm of the one below; create_graph throughout."""
    problem = draw(case)

    def orders(call):
        inputs = flat_inputs(problem)
        value = sum(t.square().sum() for t in on_flat_inputs(call, problem)(*inputs))
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(value, inputs, create_graph=True)
            found.append(grads)
            value = sum(grad.square().sum() for grad in grads)
        return found

    for order, (got, want) in enumerate(zip(orders(operator(backend)), orders(composite), strict=True), 1):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item(), msg=f"order {order}")


def test_loss_of_the_map_alone(backend):
    """grad_out never arrives; with it absent the gradient is that of the map."""
    problem = draw(Case(TINY, 2, DOUBLE, bias=True, residual=True, map=True))
    inputs, expected = flat_inputs(problem), flat_inputs(problem)
    _, attn_map = on_flat_inputs(operator(backend), problem)(*inputs)
    _, want = on_flat_inputs(composite, problem)(*expected)
    (attn_map * problem.grad_map).sum().backward()
    (want * problem.grad_map).sum().backward()
    for got, ref in zip(inputs[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(got.grad, ref.grad)
    assert inputs[-1].grad is None or inputs[-1].grad.eq(0).all()


def test_units_at_exactly_zero_pass_no_gradient(backend):
    """The subgradient of each ReLU at 0 is 0, as autograd's: x = 0 without biases leaves every unit there."""
    problem = draw(Case(TINY, 2, DOUBLE, squash="sigmoid", residual=True, map=True))
    problem.x.zero_()
    problem.residual.zero_()
    got, want = results(operator(backend), problem), results(composite, problem)
    assert want["grad a"].eq(0).all()
    assert want["grad x"].eq(0).all()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("wanted", ["x", "weights", "residual", "one weight"])
def test_gradients_of_some_inputs_only(backend, wanted):
    problem = draw(Case(TINY, 2, DOUBLE, residual=True))
    everything = results(operator(backend), problem)
    x, w, residual = (
        problem.x.clone(),
        Weights(*(None if t is None else t.clone() for t in problem.w)),
        problem.residual,
    )
    leaves = {
        "x": {"x": x},
        "weights": {name: t for name, t in w._asdict().items() if t is not None},
        "residual": {"residual": residual.clone()},
        "one weight": {"v_collapse": w.v_collapse},
    }[wanted]
    for leaf in leaves.values():
        leaf.requires_grad_()
    out, _ = operator(backend)(x, w, leaves.get("residual", residual), problem.squash, False)
    grads = torch.autograd.grad(out, list(leaves.values()), problem.grad_out)
    for name, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(grad, everything[f"grad {name}"], rtol=0, atol=0)


@pytest.mark.parametrize(("need_input", "need_weights"), [(False, True), (True, False), (False, False)])
def test_backward_computes_only_what_is_needed(backend, need_input, need_weights):
    problem = draw(Case(TINY, 2, DOUBLE))
    saved = torch.ops.gala_cuda.gala(problem.x, *problem.w, None, Squash.TANH, False, True, backend)[2:]
    grads = torch.ops.gala_cuda.gala_backward(
        problem.grad_out, None, problem.x, *problem.w, None, *saved, Squash.TANH, need_input, need_weights, backend
    )
    everything = results(operator(backend), problem)
    for name, grad in zip(("x", *Weights._fields[:6]), grads, strict=False):
        if need_input if name == "x" else need_weights:
            torch.testing.assert_close(grad, everything[f"grad {name}"])
        else:
            assert grad.numel() == 0
    assert all(grad.numel() == 0 for grad in grads[7:])


def test_the_backward_operator_refuses_to_be_differentiated():
    problem = draw(Case(TINY, 2, DOUBLE))
    saved = torch.ops.gala_cuda.gala(problem.x, *problem.w, None, Squash.TANH, False, True, "reference")[2:]
    grad_out = problem.grad_out.requires_grad_()
    with pytest.raises(RuntimeError, match="not differentiable"):
        torch.ops.gala_cuda.gala_backward(
            grad_out, None, problem.x, *problem.w, None, *saved, Squash.TANH, True, True, "reference"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout", "residual"),
    [
        (torch.float32, "contiguous", False),
        (torch.float32, "channels_last", True),
        (torch.float32, "contiguous/slice_c", True),
        (torch.float32, "channels_last/slice_n", False),
        (torch.float32, "channels_last/crop", True),
        (DOUBLE, "contiguous/slice_n", True),
        (DOUBLE, "channels_last", False),
        (torch.bfloat16, "contiguous", True),
        (torch.bfloat16, "channels_last/slice_c", False),
        (torch.float16, "contiguous/crop", False),
        (torch.float16, "channels_last", True),
    ],
    ids=str,
)
def test_opcheck(backend, dtype, layout, residual):
    problem = draw(Case((2, 5, 3, 2), 3, dtype, layout=layout, bias=residual, residual=residual, map=True))
    arguments = problem.x, *problem.w, problem.residual, Squash.TANH, True
    forward, backward = torch.ops.gala_cuda.gala.default, torch.ops.gala_cuda.gala_backward.default
    torch.library.opcheck(forward, (*arguments, False, backend))
    out, _, *saved = forward(*arguments, True, backend)
    w = [t if t is None else t.detach().requires_grad_() for t in problem.w]
    leaf = problem.x.detach().requires_grad_()
    torch.library.opcheck(forward, (leaf, *w, problem.residual, Squash.TANH, True, False, backend))
    torch.library.opcheck(
        backward,
        (
            problem.grad_out,
            problem.grad_map,
            problem.x,
            *problem.w,
            out if residual else None,
            *saved,
            Squash.TANH,
            True,
            True,
            backend,
        ),
    )


def saved_bytes(call, inputs: list[torch.Tensor]) -> int:
    """Bytes autograd keeps beyond the storages of ``inputs``."""
    known = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, int] = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*inputs)
    return sum(kept.values())


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_saved_for_backward(backend, residual):
    """s, ReLU mask, p and z, at most 5 % of x at the paper's size; with a residual also out."""
    n, c, side, reduced = 2, 1024, 14, 256
    problem = draw_large(n, c, side, reduced, residual)
    inputs = flat_inputs(problem)
    x_bytes = inputs[0].nbytes
    extra = saved_bytes(on_flat_inputs(operator(backend), problem), inputs)
    stats = 4 * n * (side**2 + c + reduced)
    relu_mask = 4 * n * side**2 * (reduced // 32)
    assert extra == stats + relu_mask + (x_bytes if residual else 0)
    assert stats + relu_mask <= 0.05 * x_bytes
    assert saved_bytes(on_flat_inputs(composite, problem), inputs) > 2 * x_bytes


def draw_large(n: int, c: int, side: int, reduced: int, residual: bool) -> Problem:
    """Only its size matters: no kinks to stay away from."""
    x = torch.randn(n, c, side, side)
    shapes = (reduced, c), (c, reduced), (reduced, c), (reduced,), (c,), (c,)
    w = Weights(*(torch.randn(shape) / 32 for shape in shapes))
    return Problem(x, w, torch.randn_like(x) if residual else None, "tanh", x, None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_nothing_is_saved_where_no_gradient_is_wanted(backend, mode):
    problem = draw(Case(TINY, 2, residual=True))
    inputs = flat_inputs(problem)
    if mode is torch.enable_grad:
        inputs = [t.detach() for t in inputs]
    function = on_flat_inputs(operator(backend), problem)
    with mode():
        assert saved_bytes(function, inputs) == 0
        assert not function(*inputs)[0].requires_grad


def test_auxiliary_outputs_of_save_are_not_differentiable(backend):
    problem = draw(Case(TINY, 2))
    x = problem.x.requires_grad_()
    out, _, stats, relu_mask = torch.ops.gala_cuda.gala(x, *problem.w, None, Squash.TANH, False, True, backend)
    assert out.requires_grad
    assert not stats.requires_grad
    assert not relu_mask.requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_have_the_parameters_dtype_and_strides(backend, layout, parameters):
    problem = draw(Case((2, 8, 3, 3), 4, torch.bfloat16, parameters, layout, bias=True))
    w = problem.w
    transposed = w._replace(
        w_shrink=w.w_shrink.t().contiguous().t(),
        w_expand=w.w_expand.t().contiguous().t(),
        v_collapse=torch.stack([w.v_collapse] * 2, 1)[:, 0],
    )
    got, plain = results(operator(backend), problem._replace(w=transposed)), results(operator(backend), problem)
    for name, parameter in transposed._asdict().items():
        grad = got[f"grad {name}"]
        assert grad.dtype == parameters
        torch.testing.assert_close(grad, plain[f"grad {name}"])
        if name != "v_collapse":  # a strided leaf's gradient is dense, as torch.empty_like makes it
            assert grad.stride() == parameter.stride(), name


GRADS = {
    "expanded": lambda t: torch.ones((), dtype=t.dtype).expand(t.shape),
    "other-format": lambda t: t.contiguous(memory_format=torch.channels_last),
    "crop": lambda t: laid_out(t, "contiguous/crop"),
    "every-other-channel": lambda t: torch.stack([t, t], 2).flatten(1, 2)[:, ::2],
    "misaligned": lambda t: laid_out(t, "channels_last/misaligned"),
}


@pytest.mark.parametrize("strides", GRADS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_incoming_gradient_of_any_strides(backend, strides, layout, residual):
    problem = draw(Case((2, 6, 3, 4), 4, layout=layout, residual=residual, map=True))
    grad_out = GRADS[strides](problem.grad_out)
    grad_map = problem.grad_map.transpose(1, 2).contiguous().transpose(1, 2)
    got = results(operator(backend), problem._replace(grad_out=grad_out, grad_map=grad_map))
    want = results(operator(backend), problem._replace(grad_out=laid_out(grad_out, layout)))
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-5, msg=name)
    assert got["grad x"].stride() == problem.x.stride()


@pytest.mark.parametrize("name", ["residual", "grad_out", "map_factor", "out", "stats", "relu_mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_direct_call_with_another_dtype_is_refused(backend, name, dtype):
    """Kernels would read its memory as what it is not."""
    problem = draw(Case((1, 4, 3, 3), 2, dtype, residual=True, map=True))
    op, op_backward = torch.ops.gala_cuda.gala, torch.ops.gala_cuda.gala_backward
    out, attn_map, stats, relu_mask = op(problem.x, *problem.w, problem.residual, Squash.TANH, True, True, backend)
    given = {
        "grad_out": problem.grad_out, "map_factor": torch.ones_like(attn_map), "residual": problem.residual, "out": out,
        "stats": stats, "relu_mask": relu_mask,
    }  # fmt: skip
    right = given[name].dtype
    given[name] = given[name].double()
    forward = functools.partial(op, problem.x, *problem.w, given["residual"], Squash.TANH, True, True, backend)
    saved = (given["out"], given["stats"], given["relu_mask"], Squash.TANH, True, True, backend)
    backward = functools.partial(op_backward, given["grad_out"], given["map_factor"], problem.x, *problem.w, *saved)
    with pytest.raises(TypeError, match=f"{name} is torch.float64; expected {right}"):
        (forward if name == "residual" else backward)()
