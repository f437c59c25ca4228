"""What is refused of a forward pass, and what is warned of, in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from captum_attnflow._checks import counted
from captum_attnflow._warnings import warn_caller
from captum_attnflow.capture.record import UnsupportedAttentionError

if TYPE_CHECKING:
    from captum_attnflow.capture.gradients import AttentionCall

_SUPPORTED = (
    "Supported is softmax attention that runs as torch operations in the calling "
    "thread (torch.nn.MultiheadAttention, F.scaled_dot_product_attention, or written "
    "out: a softmax, or exponentials divided by their sum, then matmul, einsum, or "
    "multiply and sum). Not seen are TorchScript, flash and flex kernels (load a "
    'transformers model with attn_implementation="sdpa" or "eager"), and models that '
    "run in worker "
    "threads (pass DataParallel's .module). A model without attention, such as a "
    "convolutional network, has nothing that a flow could follow: take SLALOM or "
    "IntegratedGradients"
)
ALL_KEYS_AT_ONCE = (
    "Let one softmax have all keys, such as by a chunk size of the number of tokens or "
    'by attn_implementation="eager" or "sdpa"; SLALOM and IntegratedGradients take the '
    "model as it is"
)
_SCRIPT = (
    "It is TorchScript, whose operations cannot be seen: pass the Python model that it "
    "was traced or scripted from"
)


def why_none_is_found(
    forward_func: Callable[..., Any],
    without_softmax: Sequence[str] = (),
    in_parts: bool = False,
) -> str:
    """Say why a forward function may have shown no attention, and what to do.

    Args:
        forward_func (Callable): The forward function.
        without_softmax (sequence of str): The calls that mix its tokens nevertheless.
        in_parts (bool): Whether a softmax was seen over parts of the keys.
    """
    if in_parts:
        return (
            "Its keys are attended to in parts: exponentials of scores weigh values "
            "before they are divided by their sum, as in attention over chunks of keys "
            f"that are written out like a flash kernel. {ALL_KEYS_AT_ONCE}"
        )
    if without_softmax:
        return (
            f"Its tokens are mixed by {', '.join(without_softmax)} of two tensors that "
            "are made of them, without a softmax, as in linear, sigmoid or retention "
            "attention, or by a softmax that something changes before it weighs the "
            "values, as in differential attention and talking heads. Flows follow "
            "softmax attention alone: take AttnLRP, SLALOM or IntegratedGradients"
        )
    parts = forward_func.modules() if isinstance(forward_func, nn.Module) else ()
    script = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    is_script = any(isinstance(part, script) for part in (forward_func, *parts))
    return _SCRIPT if is_script else _SUPPORTED


def refuse_kernels_without_gradient(kernels: Collection[str]) -> None:
    """Refuse a pass in which integer-quantised kernels cut the gradient off.

    Raises:
        UnsupportedAttentionError: Always.
    """
    raise UnsupportedAttentionError(
        f"integer-quantised kernels have no gradient ({', '.join(sorted(kernels))}), "
        "so that what passes through them would have no score. Load the model in "
        "float32, bfloat16 or float16, or with weights alone in 8 or 4 bits, such as "
        "torchao's Int8WeightOnlyConfig or bitsandbytes' Linear4bit"
    )


def refuse_parts_of_a_layer(parts: Sequence[AttentionCall]) -> NoReturn:
    """Refuse a layer whose attention runs in several calls, and say over what parts.

    Args:
        parts (sequence of AttentionCall): Their values are the same tensor, or parts of
            one.

    Raises:
        UnsupportedAttentionError: Always.
    """
    lengths = [call.lengths() for call in parts]
    first, *others = (call.values for call in parts)
    if all(other.data_ptr() == first.data_ptr() for other in others):
        kind = "queries"
    elif sum(keys for _, keys in lengths) == lengths[0][0]:
        kind = "keys"
    else:
        kind = "heads or examples"
    sizes = [f"{n_queries} x {n_keys}" for n_queries, n_keys in lengths[:3]]
    if len(lengths) > 3:
        sizes.append("...")
    way_out = {
        "queries": "Let it have all queries at once, such as by a chunk size of the "
        'number of tokens or by attn_implementation="eager" or "sdpa"; AttnLRP takes '
        "the model as it is",
        "keys": ALL_KEYS_AT_ONCE,
        "heads or examples": "Let it have all heads and examples at once, as "
        'attn_implementation="eager" and "sdpa" do; AttnLRP takes the model as it is',
    }[kind]
    raise UnsupportedAttentionError(
        f"a layer attends in {len(parts)} calls, each over a part of its {kind}, as in "
        f"a Python loop over chunks ({', '.join(sizes)} queries x keys). Flows need "
        f"all of a layer in one call. {way_out}"
    )


def refuse_other_rows(
    n_stacks: int,
    n_seen: int,
    n_keys: set[int],
    inputs: Sequence[Tensor],
    n_rows: int,
) -> NoReturn:
    """Refuse attention over other rows than those of the inputs.

    Args:
        n_stacks (int): Stacks of attention that do not feed on each other.
        n_seen (int): Rows that they ran over, in all.
        n_keys (set of int): Keys of their first layers.
        inputs (sequence of Tensor): The inputs.
        n_rows (int): Their rows.

    Raises:
        UnsupportedAttentionError: Always.
    """
    is_swapped = any(of.shape[1:2] == (n_seen,) for of in inputs)
    if n_seen < n_rows or (is_swapped and n_keys == {n_rows}):
        raise UnsupportedAttentionError(
            f"attention ran over {counted(n_seen, 'row')} for "
            f"{counted(n_rows, 'input')}, which seem to have their tokens first, in "
            "dimension 0. The batch comes first: pass them transposed, "
            "input.transpose(0, 1), and a forward_func that transposes them back"
        )
    raise UnsupportedAttentionError(
        f"{n_stacks} stacks of attention ran over {n_seen} rows in all for "
        f"{counted(n_rows, 'input')}: {_why_other_rows(n_stacks)}. It is not known "
        "which pass a token's score belongs to: attribute to one pass at a time. "
        "Inputs that have their tokens first go in transposed"
    )


def _why_other_rows(n_stacks: int) -> str:
    if n_stacks > 1:
        return (
            "several passes per input, such as those of two towers that meet behind "
            "their attention (CLIP: wrap get_image_features or get_text_features), of "
            "siamese models, or of reentrant gradient checkpointing"
        )
    return (
        "several passes per input in one batch, as of windowed attention (Swin), of "
        "channels that are sequences of their own (PatchTST: pass one channel as one "
        "example), or of texts joined in the batch"
    )


def refuse_overwritten_masks() -> NoReturn:
    """Refuse masks that were changed after a fused kernel had used them.

    Raises:
        UnsupportedAttentionError: Always.
    """
    raise UnsupportedAttentionError(
        "an attention mask was changed in place after a fused kernel had used it, but "
        "the attention map is formed of it afterwards. Let the model make a copy of "
        'the mask, or load it with attn_implementation="eager"'
    )


def refuse_maps_without_gradient(n_without: int, n_maps: int) -> NoReturn:
    """Refuse attention that ran where autograd is off.

    Args:
        n_without (int): Maps that have no gradient.
        n_maps (int): All of them.

    Raises:
        UnsupportedAttentionError: Always.
    """
    if torch.is_inference_mode_enabled():
        raise UnsupportedAttentionError(
            "this was called under torch.inference_mode(), where nothing has a "
            "gradient; call it outside"
        )
    raise UnsupportedAttentionError(
        f"{n_without} of {n_maps} attention calls ran under torch.no_grad() inside "
        "forward_func, such as those of a frozen backbone or of reentrant gradient "
        "checkpointing, so that the output has no gradient in them. Freeze a backbone "
        "by requires_grad_(False) on its parameters instead, which leaves nothing in "
        ".grad; checkpoint with use_reentrant=False"
    )


def warn_of_missed_softmaxes(n_missed: int, n_calls: int) -> None:
    """Say that softmaxes of an attention map's shape met no values."""
    warn_caller(
        f"{n_missed} softmaxes of the shape of an attention map were not seen to weigh "
        f"values, {n_calls} were. If these are attention layers, they are missing from "
        "the scores: write them as softmax(...) followed by matmul or einsum, or as "
        "F.scaled_dot_product_attention"
    )


def warn_of_unfollowed_scores(n_unfollowed: int, n_calls: int) -> None:
    """Say that keys get no share of the relevance of some layers' scores."""
    warn_caller(
        f"in {n_unfollowed} of {n_calls} attention layers the scores were not seen to "
        "be one product of queries and keys, so that keys get no share of their "
        "relevance there: flows over relevance give it to the queries. Write scores as "
        "a matmul or an einsum of queries and keys, or as "
        "F.scaled_dot_product_attention"
    )


def warn_of_parts() -> None:
    """Say that rules take the parts of a softmax for functions of their own."""
    warn_caller(
        "attention runs over parts of its keys, which are put together afterwards, as "
        "flash kernels do. Propagation rules take each part for a function of its own, "
        "so that relevance is not that of softmax attention: let one softmax have all "
        "keys, such as by a chunk size of the number of tokens, or by "
        'attn_implementation="eager" or "sdpa"'
    )


def warn_of_dropout() -> None:
    """Say that scores are of a model that chance has thinned out."""
    warn_caller(
        "dropout is active, so that the scores are those of one random choice of "
        "units: call model.eval() first"
    )
