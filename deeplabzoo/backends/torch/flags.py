"""What the PyTorch backend is and can do, as data, readable without importing PyTorch."""

MODULES = ("torch",)
"""Modules that must be importable."""

DISTRIBUTIONS = ("torch",)
"""Installed distributions whose versions are worth telling."""

FLOAT64 = True
DYNAMIC_SIZE = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".pth"
