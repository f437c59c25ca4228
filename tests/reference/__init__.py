"""Slow replicas, written from the equations, that the package is compared with."""
