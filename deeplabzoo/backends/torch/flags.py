"""What the PyTorch backend is and can do, as data, readable without importing PyTorch."""

MODULES = ("torch",)
"""Modules that must be importable."""

DISTRIBUTIONS = ("torch",)
"""Installed distributions whose versions are worth telling."""

DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Element types that it builds."""

DYNAMIC_SIZE = True
GRADIENTS = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".pth"
