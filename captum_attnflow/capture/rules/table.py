"""Which operation has which rule. A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from captum_attnflow.capture.rules import contraction, elementwise, normalisation
from captum_attnflow.capture.rules.call import Call

if TYPE_CHECKING:
    from captum_attnflow.capture.rules.mode import PropagationRules


def _names(text: str) -> set[str]:
    return set(text.split())


Rule = Callable[["PropagationRules", Call], Any]

ACTIVATIONS = _names(
    """
    _threshold abs atan arctan celu clamp clamp_max clamp_min cos cosh elu erf erfc
    exp exp2 expit expm1 gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu
    log1p log_sigmoid logsigmoid mish relu relu6 selu sigmoid silu sin sinc sinh
    softplus softshrink softsign special_erf special_exp2 special_expit
    special_expm1 special_log1p special_sinc sqrt square tan tanh tanhshrink
    threshold
    """
)
_RECIPROCALS = {"__rdiv__", "reciprocal", "rsqrt"}
_PRODUCTS = {"mul", "multiply"}
_QUOTIENTS = {"div", "divide", "true_divide"}
_POWERS = {"__rpow__", "float_power", "pow"}

# From which an activation may be written out.
ELEMENTWISE = (
    ACTIVATIONS | elementwise.SHIFTS | _PRODUCTS | _QUOTIENTS | _POWERS | _RECIPROCALS
)

CONTRACTIONS = _names(
    """
    __matmul__ __rmatmul__ addbmm addmm addmv baddbmm bilinear bmm chain_matmul dot
    einsum inner linalg_vecdot linear matmul mm mv outer
    scaled_dot_product_attention tensordot vdot
    """
)

RULE_OF: dict[str, Rule] = {
    **dict.fromkeys(CONTRACTIONS, contraction.contraction),
    **dict.fromkeys(ACTIVATIONS, elementwise.identity),
    **dict.fromkeys(elementwise.SHIFTS, elementwise.shift_or_scale),
    **dict.fromkeys(_PRODUCTS, elementwise.product),
    **dict.fromkeys(_QUOTIENTS, elementwise.quotient),
    **dict.fromkeys(_POWERS, elementwise.power),
    **dict.fromkeys(_RECIPROCALS, elementwise.reciprocal),
    **dict.fromkeys(["addcdiv", "addcmul"], elementwise.multiplied_sum),
    **dict.fromkeys(["softmax", "special_softmax"], contraction.softmax),
    **dict.fromkeys(["argmax", "argsort", "sort", "topk"], contraction.choice),
    "baddbmm": contraction.added_contraction,
    "cosine_similarity": normalisation.cosine_similarity,
    "einsum": contraction.einsum,
    "glu": elementwise.gated_linear_unit,
    "group_norm": normalisation.group_norm,
    "instance_norm": normalisation.instance_norm,
    "layer_norm": normalisation.layer_norm,
    "lerp": elementwise.interpolation,
    "normalize": normalisation.normalize,
    "rms_norm": normalisation.rms_norm,
    "scaled_dot_product_attention": contraction.fused_attention,
}

# After which an elementwise function is still one.
CASTS = _names(
    """
    bfloat16 clone contiguous double float half to type type_as
    """
)

# Views, choices and sums, through which a gate stays one.
FOLLOWED = CASTS | _names(
    """
    H T __getitem__ adjoint amax broadcast_to cat chunk detach dropout expand
    expand_as flatten gather index_select mH mT masked_fill masked_select max moveaxis
    movedim narrow permute repeat repeat_interleave reshape reshape_as scatter scatter_
    select split squeeze stack sum swapaxes t take_along_dim transpose unbind unflatten
    unsqueeze view
    view_as where
    """
)

# Moves and picks.
_MOVES = _names(
    """
    __setitem__ as_strided concat concatenate copy_ diag_embed diagonal dsplit
    dstack fill_ flip hsplit hstack index_copy index_copy_ index_fill index_fill_
    index_put index_put_ masked_fill_ masked_scatter masked_scatter_ nan_to_num
    positive ravel requires_grad_ roll rot90 squeeze_ swapdims take
    tensor_split tile tril triu unfold unsqueeze_ view_as_complex
    view_as_real vsplit vstack zero_
    """
)
# Sums and means; dropout.
_SUMS = _names(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d alpha_dropout avg_pool1d avg_pool2d
    avg_pool3d cumsum cumulative_trapezoid diff dropout_ feature_alpha_dropout
    feature_dropout index_add index_add_ mean nanmean nansum scatter_add
    scatter_add_ scatter_reduce trace
    """
)
# Linear maps, of parameters.
_MAPS = _names(
    """
    _grouped_mm batch_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    embedding embedding_bag fold grid_sample grouped_mm interpolate
    multi_head_attention_forward pad pixel_shuffle pixel_unshuffle
    """
)
# The slope is f(x) / x by itself.
_PICKS = _names(
    """
    adaptive_max_pool1d adaptive_max_pool2d amin aminmax cummax cummin fmax fmin
    max_pool1d max_pool2d maximum median min minimum prelu rrelu
    """
)
# What is divided by, where it matters, and logarithms of outputs.
_STATISTICS = _names(
    """
    linalg_norm linalg_vector_norm log log10 log2 log_softmax logsumexp norm
    special_log_softmax special_logsumexp std std_mean var var_mean
    """
)

# What keeps its gradient.
LINEAR = FOLLOWED | _MOVES | _SUMS | _MAPS | _PICKS | _STATISTICS

# Nodes of the autograd graph that rules replace.
REPLACED_NODES = {
    f"{name}Backward0"
    for name in [
        "Elu",
        "Erf",
        "Gelu",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyRelu",
        "Mish",
        "NativeGroupNorm",
        "NativeLayerNorm",
        "FusedRmsNorm",
        "Relu",
        "Rsqrt",
        "Sigmoid",
        "Silu",
        "Softplus",
        "Tanh",
    ]
}
