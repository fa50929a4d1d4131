"""Paddle: a tree of `paddle.nn.Layer`s, callable part by part, whose state dict follows the canonical names."""
