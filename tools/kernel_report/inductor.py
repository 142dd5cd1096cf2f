"""The kernels that torch.compile makes of the paper's formula for a GPU that is not there, and their least time.

The formula is traced on the CPU; then its graphs, forward and backward, are lowered for a device that only says how
many multiprocessors it has. Inductor fuses and orders what it lowers, and that is all that is taken of it: what each of
its kernels, or of the libraries' that it calls, reads, writes and multiplies. There is no machine code of these kernels
here, so they are taken to reach the rates of memory, L2 and the tensor cores: a bound, less than what they take.

It stands on Inductor's inner names, those of torch 2.14.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.device_interface import get_interface_for_device
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from gala_cuda.bench.peers import Formula

from .rates import LAUNCH, SHARE, Gpu
from .traffic import from_memory

_DEVICE = torch.device("cuda", 0)


class Node(NamedTuple):
    """A kernel: the bytes of each buffer that it touches, the operations of its products, and its graph's inputs."""

    name: str
    touched: dict[str, int]
    flops: int
    inputs: frozenset[str]


class _Graph(NamedTuple):
    module: torch.fx.GraphModule
    inputs: Sequence[Any]
    backward: bool


def compiled_kernels(shape: tuple[int, int, int, int], reduction: int, gpu: Gpu) -> tuple[list[Node], list[Node]]:
    """The kernels of the forward and of the backward pass, in bfloat16 and channels_last."""
    graphs = _traced(shape, reduction)
    with _standing_in(gpu):
        forward, backward = (_lowered(graph) for graph in graphs)
    return forward, backward


def least_time(nodes: Sequence[Node], gpu: Gpu) -> float:
    """Microseconds of these kernels, one after the other, in a pass that is repeated."""
    flops = 2 * gpu.products * gpu.num_sms * gpu.clock
    inputs = [name for node in nodes for name in node.inputs]
    total = 0.0
    for node, bytes_memory in zip(nodes, from_memory([node.touched for node in nodes], inputs, gpu.l2), strict=True):
        l2 = sum(node.touched.values()) / (gpu.l2_rate * gpu.num_sms * gpu.clock)
        total += max(bytes_memory / (gpu.memory * SHARE), l2, node.flops / flops) + LAUNCH
    return 1e6 * total


def _traced(shape: tuple[int, int, int, int], reduction: int) -> list[_Graph]:
    """The graphs that torch.compile would lower, forward first."""
    found: list[_Graph] = []

    def keep(backward: bool):
        def compiler(module: torch.fx.GraphModule, inputs: Sequence[Any]):
            found.append(_Graph(module, inputs, backward))
            outputs: Any = module.graph.output_node().args[0]
            results = [None if node is None else node.meta["val"] for node in outputs]
            return make_boxed_func(lambda *_: [torch.empty_like(t) if isinstance(t, Tensor) else t for t in results])

        return compiler

    def partition(module: torch.fx.GraphModule, inputs: Sequence[Any], **options: Any):
        compile_fx._recursive_joint_graph_passes(module)
        return min_cut_rematerialization_partition(module, inputs, compiler="inductor", **options)

    layer = Formula(shape[1], reduction, init="paper").to(torch.bfloat16)
    mode = FakeTensorMode()
    parameters = {name: mode.from_tensor(value) for name, value in layer.named_parameters()}
    with mode:
        x = torch.empty(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()

        def call(x: Tensor, *values: Tensor) -> Tensor:
            return functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

        traced = aot_function(
            call,
            fw_compiler=keep(False),
            bw_compiler=keep(True),
            partition_fn=partition,
            decompositions=select_decomp_table(),
        )
        out = traced(x, *parameters.values())
        out.backward(torch.empty_like(out))
    return sorted({graph.backward: graph for graph in found}.values(), key=lambda graph: graph.backward)


def _lowered(graph: _Graph) -> list[Node]:
    module, inputs = _moved(graph)
    compile_fx._recursive_post_grad_passes(module, is_inference=False)
    lowering = GraphLowering(module, example_inputs=inputs, is_backward=graph.backward, is_inference=False)
    mode = detect_fake_mode(inputs)
    with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowering.run(*inputs)
        lowering.init_wrapper_code()
        lowering._update_scheduler()
        names = frozenset(_name(name, graph.backward) for name in lowering.graph_input_names)
        nodes = [_node(node, graph.backward, names) for node in lowering.scheduler.nodes]
    return [node for node in nodes if node.touched]


def _name(name: str, backward: bool) -> str:
    """A buffer's name; only those of the call's own tensors mean the same in both graphs."""
    return name if name.startswith(("primals", "tangents")) else f"{'backward' if backward else 'forward'} {name}"


def _moved(graph: _Graph) -> tuple[torch.fx.GraphModule, list[Any]]:
    """The graph and its inputs as if they lay on the GPU."""
    mode = detect_fake_mode(graph.inputs)
    assert mode is not None
    with mode, torch.no_grad():
        inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_DEVICE) for t in graph.inputs]
    for node in graph.module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": _DEVICE}
    FakeTensorProp(graph.module, mode).propagate_dont_convert_inputs(*inputs)
    return graph.module, inputs


def _node(node: Any, backward: bool, inputs: frozenset[str]) -> Node:
    accesses = node.get_read_write_buffer_accesses(True, True)
    touched = {_name(name, backward): size for name, size in accesses.items() if size}
    kernel = getattr(node.node, "python_kernel_name", None) or "generated"
    flops = node.estimate_flops() or 0
    if "convolution_backward" in kernel:  # of the input and of the weights, by 1x1 convolutions
        grad, x = node.node.inputs[0], node.node.inputs[1]
        flops = 2 * 2 * math.prod(map(int, grad.get_size())) * int(x.get_size()[1])
    return Node(str(kernel), touched, flops, inputs)


@contextlib.contextmanager
def _standing_in(gpu: Gpu) -> Iterator[None]:
    """Has torch and Inductor believe in such a GPU."""
    major, minor = divmod(gpu.arch, 10)
    device = SimpleNamespace(
        name=gpu.name,
        major=major,
        minor=minor,
        multi_processor_count=gpu.num_sms,
        regs_per_multiprocessor=1 << 16,
        max_threads_per_multi_processor=32 * gpu.warps,
        max_threads_per_block=1024,
        warp_size=32,
        L2_cache_size=gpu.l2,
        total_memory=80 << 30,
        shared_memory_per_block_optin=gpu.shared - 1024,
        shared_memory_per_multiprocessor=gpu.shared,
    )
    interface = get_interface_for_device("cuda")
    answers: dict[str, Any] = {
        "is_available": True,
        "get_device_properties": device,
        "get_device_capability": (major, minor),
        "get_device_name": gpu.name,
        "current_device": 0,
        "device_count": 1,
        "is_initialized": False,
        "is_bf16_supported": True,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=answer))
        for owner in (interface, interface.Worker):
            stack.enter_context(mock.patch.object(owner, "get_device_properties", return_value=device))
        stack.enter_context(mock.patch.object(interface, "get_compute_capability", return_value=gpu.arch))
        for module in (scheduler, torch.utils._triton):
            stack.enter_context(mock.patch.object(module, "has_triton", return_value=True))
        yield
