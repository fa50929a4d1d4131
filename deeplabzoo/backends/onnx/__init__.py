"""The ONNX backend: a graph as a checked `ModelProto`, run by onnxruntime, and in float64 by onnx.reference."""
