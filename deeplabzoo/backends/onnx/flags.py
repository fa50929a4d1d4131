"""What the ONNX backend is and can do, as data, readable without importing onnx or onnxruntime."""

MODULES = ("onnx", "onnxruntime")
"""Modules that must be importable."""

DISTRIBUTIONS = ("onnx", "onnxruntime")
"""Installed distributions whose versions are worth telling."""

DTYPES = ("float64", "float32", "float16")
"""Element types that it builds."""

DYNAMIC_SIZE = True
GRADIENTS = False
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".onnx"
