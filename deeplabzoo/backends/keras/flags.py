"""What the Keras backend is and can do, as data, readable without importing Keras."""

MODULES = ("keras",)
"""Modules that must be importable, beside the Keras backend itself."""

DISTRIBUTIONS = ("keras",)
"""Installed distributions whose versions are worth telling, beside the Keras backend's."""

EXTRA = "keras"
"""`pip install deeplabzoo[EXTRA]`."""

ENGINES = ("tensorflow", "jax", "torch")
"""What Keras can run on, chosen by the environment variable KERAS_BACKEND before Keras is imported."""

FLOAT64 = True
DYNAMIC_SIZE = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".weights.h5"
