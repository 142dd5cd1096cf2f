"""The attention block as a layer: shapes, a residual, the attention map, gradients, and the choice of backend."""

import torch

import gala_cuda

torch.manual_seed(0)
layer = gala_cuda.GALA(64, reduction=4)
x = torch.randn(2, 64, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
shortcut = torch.randn_like(x)

out = layer(x)
attention = layer.attention(x)
print(f"x {tuple(x.shape)}, out {tuple(out.shape)}, attention {tuple(attention.shape)}")
print("out is x times the attention:", torch.allclose(out, x * attention, atol=1e-5))

block = layer(x, residual=shortcut)
print(
    "with a residual it is relu(x times the attention + residual):", torch.allclose(block, torch.relu(out + shortcut))
)

out, attention_map = layer(x, return_map=True)
norm = torch.linalg.vector_norm(attention, dim=1)
print(f"map {tuple(attention_map.shape)}, the attention's norm over channels:", torch.allclose(attention_map, norm))

(out.square().mean() + attention_map.mean()).backward()
print(f"gradients of x and of {sum(p.grad is not None for p in layer.parameters())} parameters:", x.grad is not None)

print("chosen for a CPU:", gala_cuda.doctor().devices[0].automatic)
reference = gala_cuda.GALA(64, reduction=4, backend="reference")
reference.load_state_dict(layer.state_dict())
print(f"largest difference from the reference: {(reference(x) - out).abs().max():.0e}")
try:
    gala_cuda.GALA(64, backend="cuda")(x)
except RuntimeError as refusal:
    print("a backend asked for by name runs or says why not:", refusal)
