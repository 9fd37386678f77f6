"""Ray Train's callbacks, ``RunConfig(callbacks=[...])``: each is told a stage's figures after its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.train import DataConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution.context import TrainRunContext

from distblock.errors import InputError


class Callbacks:
    """Those of a run.

    Args:
        run_config: Ray Train's.

    Raises:
        InputError: one is no ``ray.train.UserCallback``.
    """

    def __init__(self, run_config: RunConfig | None) -> None:
        given: Sequence[Any] = () if run_config is None else run_config.callbacks or ()
        for callback in given:
            if not isinstance(callback, UserCallback):
                raise InputError(
                    f"RunConfig.callbacks: expected objects of ray.train.UserCallback, got {type(callback).__name__};"
                    " derive it from that class"
                )
        self._callbacks: Sequence[UserCallback] = given
        self._context: Any = None if run_config is None or not given else _context(run_config)

    @property
    def are_any(self) -> bool:
        """Somebody wants to be told."""
        return bool(self._callbacks)

    def report(self, figures: Mapping[str, float]) -> None:
        """Tell figures, as Ray Train would those of one worker."""
        for callback in self._callbacks:
            callback.after_report(self._context, [dict(figures)], None)

    def fail(self, error: Exception) -> None:
        """Tell why the run has ended."""
        for callback in self._callbacks:
            callback.after_exception(self._context, {0: error})


def _context(run_config: RunConfig) -> TrainRunContext:
    """What callbacks are told of the run: its RunConfig; the rest says what Ray Train would do, and is empty here."""
    return TrainRunContext(
        run_config=run_config,
        train_loop_config=None,
        scaling_config=ScalingConfig(),
        backend_config=BackendConfig(),
        dataset_config=DataConfig(),
    )
