"""Reports what compilers made of the GPU kernels: registers, spills, shared memory, tensor cores. It needs no GPU."""
