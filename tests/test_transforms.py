"""The operator under PyTorch's transforms: forward mode, torch.func, vmap and autocast."""

import pytest
import torch
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from gala_cuda.backends.interface import Weights
from gala_cuda.testing import Case, composite, draw, flat_inputs, on_flat_inputs, operator, results

DOUBLE = torch.float64
TINY = (2, 3, 2, 2)


@pytest.mark.parametrize("squash", ["tanh", "sigmoid"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_forward_mode_is_the_composites(backend, squash, residual):
    problem = draw(Case(TINY, 2, DOUBLE, squash=squash, residual=residual, map=True))
    function, want = on_flat_inputs(operator(backend), problem), on_flat_inputs(composite, problem)
    primals = tuple(t.detach() for t in flat_inputs(problem))
    tangents = tuple(torch.randn_like(t) for t in primals)
    step = 1e-6
    ahead = want(*(p + step * t for p, t in zip(primals, tangents, strict=True)))
    behind = want(*(p - step * t for p, t in zip(primals, tangents, strict=True)))
    values, slopes = torch.func.jvp(function, primals, tangents)
    with dual_level():
        duals = function(*(make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
        duals = [unpack_dual(t) for t in duals]
    for i in range(2):
        torch.testing.assert_close(values[i], want(*primals)[i])
        torch.testing.assert_close(slopes[i], (ahead[i] - behind[i]) / (2 * step), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(duals[i].tangent, slopes[i])


def test_functional_gradients(backend):
    """torch.func's grad, vmap of grad (per-image gradients), jacrev and jacfwd."""
    problem = draw(Case((3, 4, 2, 2), 2, DOUBLE, residual=True))
    call = operator(backend)

    def loss(w, x, residual):
        return call(x, Weights(*w), residual, "tanh", False)[0].square().sum()

    def image_loss(w, x, residual):
        return loss(w, x[None], residual[None])

    w, x, residual = problem.w[:6], problem.x, problem.residual
    total = torch.func.grad(loss)(w, x, residual)
    leaves = [t.clone().requires_grad_() for t in w]
    out, _ = composite(x, Weights(*leaves), residual, "tanh", False)
    want = torch.autograd.grad(out.square().sum(), leaves)
    each = torch.func.vmap(torch.func.grad(image_loss), (None, 0, 0))(w, x, residual)
    for got, per_image, expected in zip(total, each, want, strict=True):
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(per_image.sum(0), expected)

    def of_mixing(a):
        return call(x, problem.w._replace(a=a), None, "tanh", False)[0]

    torch.testing.assert_close(torch.func.jacrev(of_mixing)(w[4]), torch.func.jacfwd(of_mixing)(w[4]))


@pytest.mark.parametrize(
    ("x_dim", "residual_dim", "weights_dim"),
    [(0, None, None), (2, None, None), (0, 3, None), (1, "shared", None), (None, 0, None), (0, 0, 0), (None, None, 0)],
)
def test_vmap(backend, x_dim, residual_dim, weights_dim):
    problems = [draw(Case(TINY, 2, DOUBLE, residual=True, map=True), seed) for seed in range(3)]

    def batch(tensors, dim):
        return tensors[0] if dim is None or dim == "shared" else torch.stack(tensors, dim)

    given_residual = residual_dim is not None
    x = batch([p.x for p in problems], x_dim)
    residual = batch([p.residual for p in problems], residual_dim) if given_residual else None
    w = [batch(list(ts), weights_dim) for ts in zip(*(p.w[:6] for p in problems), strict=True)]

    def function(x, w, residual):
        return operator(backend)(x, Weights(*w), residual, "tanh", True)

    residual_in = residual_dim if isinstance(residual_dim, int) else None
    out, attn_map = torch.func.vmap(function, (x_dim, weights_dim, residual_in))(x, w, residual)
    for i in range(3):

        def pick(t, dim, i=i):
            return t if t is None or dim is None else t.select(dim, i)

        want = function(pick(x, x_dim), [pick(t, weights_dim) for t in w], pick(residual, residual_in))
        torch.testing.assert_close(out[i], want[0])
        torch.testing.assert_close(attn_map[i], want[1])


def test_vmap_over_images_of_none(backend):
    x, w = torch.empty(2, 0, 3, 2, 2), draw(Case((1, 3, 1, 1), 2)).w
    out = torch.func.vmap(lambda x: operator(backend)(x, w, None, "tanh", False)[0])(x)
    assert out.shape == x.shape


PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (DOUBLE, DOUBLE),
]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dtype", "parameters"), PAIRS, ids=str)
def test_autocast_changes_nothing(backend, dtype, parameters, autocast):
    problem = draw(Case((2, 9, 3, 3), 4, dtype, parameters, bias=True, residual=True, map=True))
    want = results(operator(backend), problem)
    with torch.autocast("cpu", autocast):
        got = results(operator(backend), problem)
    assert got["out"].dtype == dtype
    for name, value in got.items():
        assert torch.equal(value, want[name]), name
        assert value.dtype == want[name].dtype


def test_autocast_does_not_touch_double_backward(backend):
    problem = draw(Case((2, 9, 3, 3), 4, bias=True, map=True))

    def second_order():
        inputs = flat_inputs(problem)
        value = sum(t.square().sum() for t in on_flat_inputs(operator(backend), problem)(*inputs))
        return torch.autograd.grad(value, inputs, create_graph=True)

    want = second_order()
    with torch.autocast("cpu", torch.bfloat16):
        got = second_order()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shortcut", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_residual_follows_x(backend, shortcut):
    problem = draw(Case((2, 9, 3, 3), 4, torch.bfloat16, torch.float32, residual=True))
    residual = problem.residual.to(shortcut).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = operator(backend)(problem.x, problem.w, residual, "tanh", False)
    want, _ = operator(backend)(problem.x, problem.w, residual.detach().bfloat16(), "tanh", False)
    assert torch.equal(out, want)
    (grad,) = torch.autograd.grad(out, residual, problem.grad_out)
    assert grad.dtype == shortcut
    assert torch.equal(grad, torch.where(out > 0, problem.grad_out, 0).to(shortcut))
