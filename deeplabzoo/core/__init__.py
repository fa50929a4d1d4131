"""Specs, graphs and what can be said about them with numpy alone."""
