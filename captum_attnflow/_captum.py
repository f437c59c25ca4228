"""The names of Captum that are private: a release of Captum breaks this file alone."""

from __future__ import annotations

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import (
    _format_output as format_output,
)
from captum._utils.common import (
    _format_tensor_into_tuples as format_tensor_into_tuples,
)
from captum._utils.common import (
    _is_tuple as is_tuple,
)
from captum._utils.common import (
    _run_forward as run_captums_forward,
)
from captum._utils.common import (
    _select_targets as select_targets,
)
from captum._utils.gradient import (
    _forward_layer_distributed_eval as forward_layer_distributed_eval,
)
from captum._utils.models.linear_model import (
    SkLearnLasso,
)
from captum._utils.progress import (
    NullProgress,
    progress,
)
from captum._utils.typing import (
    BaselineType,
    ModuleOrModuleList,
    TargetType,
)
from captum.attr._core.llm_attr import (
    DEFAULT_GEN_ARGS,
)
from captum.attr._core.llm_attr import (
    _convert_ids_to_pretty_tokens as convert_ids_to_pretty_tokens,
)
from captum.attr._utils.attribution import (
    PerturbationAttribution,
)
from captum.attr._utils.common import (
    _format_input_baseline as format_input_baseline,
)
from captum.attr._utils.common import (
    _tensorize_baseline as tensorize_baseline,
)
from captum.attr._utils.common import (
    _validate_input as validate_input,
)
from captum.log import (
    log_usage,
)

__all__ = [
    "BaselineType",
    "DEFAULT_GEN_ARGS",
    "ModuleOrModuleList",
    "NullProgress",
    "PerturbationAttribution",
    "SkLearnLasso",
    "TargetType",
    "convert_ids_to_pretty_tokens",
    "format_additional_forward_args",
    "format_input_baseline",
    "format_output",
    "format_tensor_into_tuples",
    "forward_layer_distributed_eval",
    "is_tuple",
    "log_usage",
    "progress",
    "run_captums_forward",
    "select_targets",
    "tensorize_baseline",
    "validate_input",
]
