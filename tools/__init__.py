"""Programs for work on the package: reports of compiled kernels, accuracy, drawings, wheels."""
