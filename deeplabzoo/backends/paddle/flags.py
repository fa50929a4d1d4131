"""What the Paddle backend is and can do, as data, readable without importing Paddle."""

MODULES = ("paddle",)
"""Modules that must be importable."""

DISTRIBUTIONS = ("paddlepaddle", "paddlepaddle-gpu")
"""Installed distributions whose versions are worth telling."""

DTYPES = ("float64", "float32")
"""Element types that it builds."""

DYNAMIC_SIZE = True
GRADIENTS = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".pdparams"
