"""What the Paddle backend is and can do, as data, readable without importing Paddle."""

MODULES = ("paddle",)
"""Modules that must be importable."""

DISTRIBUTIONS = ("paddlepaddle", "paddlepaddle-gpu")
"""Installed distributions whose versions are worth telling."""

FLOAT64 = True
DYNAMIC_SIZE = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".pdparams"
