"""Passes over the edges and conjugate gradients by torch, on any device."""
