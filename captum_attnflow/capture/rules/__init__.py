r"""Propagation rules: another backward pass behind the same forward pass.

Layer-wise relevance propagation can be written as input times a gradient in which some
operations are differentiated as if they were others (Ali et al., ICML 2022; Achtibat et
al., *AttnLRP*, ICML 2024). Forward values stay. The rules, where :math:`\bar{x}` is
held constant:

- **identity** (AttnLRP, Eq. 9), elementwise functions: :math:`f(x) \to x\,
  \overline{(f(x) - f(0)) / x} + f(0)`, the secant through the function's value at 0.
- **normalisation** (Ali et al., Eq. 7), LayerNorm, RMSNorm and division by what depends
  on the tokens: the divisor is constant.
- **uniform** (AttnLRP, Eq. 13 and 15), products of factors that depend on the tokens:
  the same part of the relevance to each.
- **gate**, a softmax or a choice of the highest that multiplies other features, such as
  a router of experts: a constant.
- **attention**, the weights that mix values over tokens: AttnLRP gives them half of the
  relevance, which goes on through the softmax by its own gradient; CP-LRP (Ali et al.,
  Eq. 9) holds them constant.

Everything else keeps its gradient: linear layers, convolutions, sums, views (the
epsilon rule of LRP for an epsilon of 0).

A function that is written in several operations, such as a GELU written out as
:math:`x (1 + \tanh u(x)) / 2`, is one elementwise function: what is computed from one
tensor element by element is followed back to it.

The rules are functions in :mod:`.table`, which tells which operation has which.
"""

from captum_attnflow.capture.rules.mode import RULES, PropagationRules, Rules

__all__ = ["RULES", "PropagationRules", "Rules"]
