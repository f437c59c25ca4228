from __future__ import annotations

import subprocess
import sys

import pytest

import captum_attnflow
from captum_attnflow import attr, metrics, study, tables
from captum_attnflow.cli.explain import SCORES
from captum_attnflow.slalom import SCORES as SLALOM_SCORES
from captum_attnflow.study.settings import BETTER


def loaded_by(*parts: str) -> list[set[str]]:
    """Return the modules that a fresh interpreter has after each part of a script."""
    code = "\n".join(
        ["import sys", *(f"{part}\nprint(*sys.modules)" for part in parts)]
    )
    written = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return [set(line.split()) for line in written.stdout.splitlines()]


def test_the_package_alone_loads_nothing_heavy():
    [loaded] = loaded_by("import captum_attnflow")
    assert not loaded & {"torch", "transformers", "captum", "matplotlib", "scipy"}


def test_methods_load_no_pipeline_and_all_names_no_table():
    """Tables of ``to_pandas()`` and ``to_arrow()`` are imported when one is made."""
    of_methods, of_all = loaded_by(
        "from captum_attnflow.attr import *",
        "from captum_attnflow import *; import captum_attnflow.storage",
    )
    assert "captum_attnflow.attr.relevance_flow" in of_methods
    assert "transformers" not in of_methods
    heavy = ("show", "pipelines", "study", "tables", "cli", "demo")
    assert not of_methods & {f"captum_attnflow.{room}" for room in heavy}
    assert {"captum_attnflow.pipelines", "captum_attnflow.storage"} <= of_all
    assert not of_all & {"pandas", "pyarrow"}


@pytest.mark.parametrize("room", ["flow", "metrics", "show", "slalom", "summary"])
def test_rooms_are_imported_where_the_package_does_not_hold_them(room):
    """Python asks ``__getattr__`` for these, in a new interpreter for all."""
    imported = captum_attnflow.__getattr__(room)
    assert imported is sys.modules[f"captum_attnflow.{room}"]


def test_commands_and_the_settings_of_a_table_load_nothing_heavy():
    with_settings, with_commands = loaded_by(
        "from captum_attnflow.tables import TableJob\nTableJob('a.csv', 'b').check()",
        "import captum_attnflow.cli",
    )
    heavy = {"torch", "transformers", "pyarrow", "ray", "huggingface_hub"}
    assert not with_settings & heavy
    assert not with_commands & heavy


def test_slalom_loads_no_flow_and_rooms_are_attributes_of_the_package():
    loaded, with_room = loaded_by(
        "from captum_attnflow import SLALOM, LayerSLALOM",
        "import captum_attnflow\ncaptum_attnflow.metrics.__all__",
    )
    assert "captum_attnflow.slalom.layer" in loaded
    assert not {name for name in loaded if name.startswith("captum_attnflow.flow")}
    assert "captum_attnflow.metrics" not in loaded
    assert "captum_attnflow.metrics" in with_room


@pytest.mark.parametrize("package", [captum_attnflow, attr, study, tables])
def test_every_public_name_is_there_and_listed(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


def test_a_star_imports_every_public_name():
    lazy = {name for names in captum_attnflow._MODULES.values() for name in names}
    assert set(captum_attnflow.__all__) == {"__version__", *lazy}
    assert len(captum_attnflow.__all__) == len(set(captum_attnflow.__all__))
    found: dict[str, object] = {}
    exec("from captum_attnflow import *", found)
    assert {*lazy} <= found.keys()


@pytest.mark.parametrize(
    ("module", "name", "wrapper"),
    [
        ("captum_attnflow.attr.attn_lrp", "LayerAttnLRP", "LLMGradientAttribution"),
        ("captum_attnflow.slalom.attribution", "SLALOM", "LLMAttribution"),
    ],
)
def test_captum_admits_a_method_however_it_is_imported(module, name, wrapper):
    [loaded] = loaded_by(
        f"from {module} import {name}\nfrom captum.attr import {wrapper}\n"
        f"assert issubclass({name}, {wrapper}.SUPPORTED_METHODS)"
    )
    assert module in loaded


def test_names_in_help_texts_are_those_of_the_tables():
    better = {name: metric.better for name, metric in metrics.METRICS.items()}
    assert {**better, "naopc": "higher"} == BETTER
    assert list(SLALOM_SCORES) == list(SCORES)
