"""What compilers made of the GPU kernels: registers, spills, shared memory, tensor-core instructions. No GPU needed."""
