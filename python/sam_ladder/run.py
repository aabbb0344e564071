"""A run folder of `sam-ladder train`, and what `sam-ladder eval` wrote of it, as pandas tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from .errors import RunError


@dataclass(frozen=True, repr=False)
class Run:
    """A run: settings, and a table for each of its records. docs/reference/run-folder.md has their columns."""

    #: the run folder
    path: Path
    #: `config.json`: the settings, the program's version, the store's cache_id and config, held-out cases, …
    config: dict[str, Any]
    #: a row per step: step, epoch, lr, loss, ce, dice, alpha, gate
    steps: pandas.DataFrame
    #: a row per epoch: epoch, steps, loss, ce, dice, val_dice, val_hd95, gate, seconds
    epochs: pandas.DataFrame
    #: a row per case and organ of the evaluation, and one per organ; None if there is no evaluation in `<run>/eval`
    cases: pandas.DataFrame | None = field(default=None)
    summary: pandas.DataFrame | None = field(default=None)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of `train`, by its name in docs/reference/settings.md; one that the record leaves out has its default."""
        defaults = json.loads((Path(__file__).parent / "train_defaults.json").read_text("utf-8"))
        return {**defaults, **self.config["config"]}

    def __repr__(self) -> str:
        return f"<Run {self.path}: {len(self.steps)} steps, {len(self.epochs)} epochs{', evaluated' if self.cases is not None else ''}>"


def read_run(path: str | Path, evaluation: str | Path | None = None) -> Run:
    """Reads a run folder. `evaluation` is the folder that `eval` wrote (default: `eval` in the run folder, if it is there).

    Raises RunError if the folder is not a run's, or if a table is missing.
    """
    path = Path(path)
    config = path / "config.json"
    if not config.is_file():
        raise RunError(f"{path}: this is not a run folder: it has no config.json")
    folder = Path(evaluation) if evaluation is not None else path / "eval"
    if evaluation is not None and not (folder / "cases.parquet").is_file():
        raise RunError(f"{folder}: this is not an evaluation: it has no cases.parquet")
    cases, summary = (
        pandas.read_parquet(folder / name) if (folder / name).is_file() else None for name in ("cases.parquet", "summary.parquet")
    )
    return Run(path, json.loads(config.read_text("utf-8")), _table(path / "steps.parquet"), _table(path / "epochs.parquet"), cases, summary)


def _table(path: Path) -> pandas.DataFrame:
    if not path.is_file():
        raise RunError(f"{path}: the run has no such table yet: it is written at the run's first checkpoint")
    return pandas.read_parquet(path)
