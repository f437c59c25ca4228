"""Passes over the edges and conjugate gradients compiled by Numba, for CPUs."""
