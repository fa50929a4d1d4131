"""Architectures: how backbone, ASPP, decoder, classifier and outputs are wired into a graph."""

from __future__ import annotations

from deeplabzoo.core.architectures.build import build_graph

__all__ = ["build_graph"]
