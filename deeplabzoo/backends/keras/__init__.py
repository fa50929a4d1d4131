"""Keras 3: functional models N, H, W, C on the TensorFlow, JAX and torch Keras backends."""
