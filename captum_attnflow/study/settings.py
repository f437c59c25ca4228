"""The settings of a study, checked before any work."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from captum_attnflow._checks import DTYPES, check_choice, check_integer, check_type
from captum_attnflow.study.methods import METHODS
from captum_attnflow.tables.ray_engine import check_engine
from captum_attnflow.tables.share import check_part

if TYPE_CHECKING:
    from captum_attnflow.study.data import DataSource

REMOVALS = ("replace", "delete")
"""How a study removes tokens: a baseline replaces them, or the text gets shorter."""
BETTER: dict[str, Literal["higher", "lower"]] = {
    "aopc": "higher",
    "log_odds": "lower",
    "comprehensiveness": "higher",
    "sufficiency": "lower",
    "deletion_area": "lower",
    "insertion_area": "higher",
    "naopc": "higher",
}
"""The metrics of a study, and which of their values are more faithful.

They stand here in words, so that a help text can list them without torch. A test holds
them to :data:`captum_attnflow.metrics.METRICS`.
"""
_MODULES = {"scikit-learn": "sklearn.linear_model"}


@dataclass(frozen=True)
class Study:
    """The models, data, methods and metrics of a study, and its output folder.

    Attributes:
        models (tuple of str): Model folders or hub ids.
        data (DataSource): The texts.
        methods (tuple of str): Keys of :data:`captum_attnflow.study.methods.METHODS`.
        output (Path): A folder; a study that was begun there is continued.
        against (str, optional): One of the methods; the others are compared with it.
        metrics (tuple of str): Keys of :data:`BETTER`: those of
            :data:`captum_attnflow.metrics.METRICS`, and ``"naopc"``, whose bounds take
            2,000 rows for a text of 20 tokens, once for all methods.
        removals (tuple of str): ``"replace"``, ``"delete"`` or both.
        reference_token (str): ``"mask"``, ``"pad"``, ``"unk"`` or a token as written:
            what replaces a token, in metrics and as the baseline of methods.
        seed (int): Of methods with random numbers, ties and bootstrap.
        batch_size (int): Texts that are attributed together.
        device (str, optional): Where the models run; the CPU by default.
        dtype (str): Of the models' weights.
        part (tuple of int): ``(i, n)``: which part of how many this run does, the same
            texts by all models and methods. Parts may run at once or in any order; the
            one that ends last merges their files and writes the table.
        engine (str): ``"local"`` or ``"ray"``.
        workers (int): Of Ray, actors of one thread that each hold the models.
        gpus_per_worker (float): Of Ray, GPUs of each; above 0 the models are on one.
    """

    models: tuple[str, ...]
    data: DataSource
    methods: tuple[str, ...]
    output: Path
    against: str | None = None
    metrics: tuple[str, ...] = ("aopc", "log_odds", "comprehensiveness", "sufficiency")
    removals: tuple[str, ...] = REMOVALS
    reference_token: str = "mask"
    seed: int = 0
    batch_size: int = 16
    device: str | None = None
    dtype: str = "float32"
    part: tuple[int, int] = (1, 1)
    engine: str = "local"
    workers: int = 1
    gpus_per_worker: float = 0

    def check(self) -> None:
        """Refuse wrong settings before any work.

        Raises:
            ValueError: If a name is unknown or given twice, a number is out of range,
                or a package is missing.
            OSError: If the output folder cannot be written to.
        """
        for name, given, accepted in (
            ("method", self.methods, METHODS),
            ("metric", self.metrics, BETTER),
            ("removal", self.removals, REMOVALS),
        ):
            check_type(f"{name}s", given, (tuple, list), "a tuple of names")
            for choice in given:
                check_choice(name, choice, accepted)
        check_type("models", self.models, (tuple, list), "a tuple of names")
        for name in ("models", "methods", "metrics", "removals"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={given}; give at least one, and none twice")
        if self.against is not None:
            check_type("against", self.against, str, "the name of a method")
            if self.against in METHODS and self.against not in self.methods:
                raise ValueError(
                    f"against={self.against!r} is not among the methods that are "
                    f"compared, {', '.join(self.methods)}; add it to them"
                )
            check_choice("against", self.against, self.methods)
        check_integer("batch_size", self.batch_size, 1)
        if self.device is not None:
            check_type("device", self.device, str, "a str, or None")
        check_choice("dtype", self.dtype, DTYPES)
        check_part(self.part)
        check_engine(self.engine, self.workers, self.gpus_per_worker)
        for method in self.methods:
            _check_package(method, METHODS[method].needs)
        _check_writable(self.output)


def _check_package(method: str, package: str | None) -> None:
    """Import a method's package, so that the method's time excludes the import."""
    try:
        if package is not None:
            import_module(_MODULES[package])
    except ImportError as error:
        raise ValueError(
            f"{method} needs {package}, which is not installed: "
            'pip install "captum-attnflow[study]"'
        ) from error


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"results cannot be written to the folder {str(folder)!r} "
            f"({error.strerror}); give another --output"
        ) from error
