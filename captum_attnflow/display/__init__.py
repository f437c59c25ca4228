"""How scored tokens look, below all results, so that every result can show itself."""
