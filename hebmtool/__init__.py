"""Hierarchical latent energy-based priors: train a multi-layer generator, close its prior hole, sample.

Everything the `hebm` command does is a function here: see docs/architecture.md for the map.
"""
