"""What the Keras backend is and can do, as data, readable without importing Keras."""

MODULES = ("keras",)
"""Modules that must be importable, beside the Keras backend itself."""

DISTRIBUTIONS = ("keras",)
"""Installed distributions whose versions are worth telling, beside the Keras backend's."""

DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Element types that it builds."""

DYNAMIC_SIZE = True
GRADIENTS = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".weights.h5"
