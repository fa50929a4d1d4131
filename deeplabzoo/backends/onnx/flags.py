"""What the ONNX backend is and can do, as data, readable without importing onnx or onnxruntime."""

MODULES = ("onnx", "onnxruntime")
"""Modules that must be importable."""

DISTRIBUTIONS = ("onnx", "onnxruntime")
"""Installed distributions whose versions are worth telling."""

FLOAT64 = True
DYNAMIC_SIZE = True
GPU = True
COMPILE = True
WEIGHTS_SUFFIX = ".onnx"
