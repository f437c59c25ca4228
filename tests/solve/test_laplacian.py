import torch

from captum_attnflow.solve._laplacian import LaplacianFactor


def test_factor_solves_the_dense_laplacian():
    n_layers, n_tokens = 3, 4
    weight = torch.rand(2, n_layers, n_tokens, n_tokens).double()
    ground = torch.zeros(2, n_layers + 1, n_tokens).double()
    ground[:, 0], ground[:, -1] = 0.5, 0.25
    n_nodes = (n_layers + 1) * n_tokens
    right_side = torch.randn(2, n_layers + 1, n_tokens).double()
    solution = LaplacianFactor(weight, ground).solve(right_side)
    for example in range(2):
        dense = torch.diag(ground[example].flatten())
        for layer in range(n_layers):
            for head in range(n_tokens):
                for tail in range(n_tokens):
                    above = (layer + 1) * n_tokens + head
                    below = layer * n_tokens + tail
                    incidence = torch.zeros(n_nodes).double()
                    incidence[above], incidence[below] = 1, -1
                    edge = weight[example, layer, head, tail]
                    dense += edge * torch.outer(incidence, incidence)
        expected = torch.linalg.solve(dense, right_side[example].flatten())
        torch.testing.assert_close(solution[example].flatten(), expected)
