"""Early stopping: which stages have stopped, decided in stream order.

Stages run ahead of one another, so the moment at which a verdict is known depends on the machine; what follows from it
must not. So a verdict is asked for at fixed places of the stream, which waits there until it is known.
"""

from __future__ import annotations

Turn = tuple[int, int]
"""A stage and a lap: each lap is judged by itself."""


class Patience:
    """What has been evaluated so far, and who has had enough.

    Args:
        evaluations: how many without a rise of validation accuracy end a stage's training; None: any number is borne.
    """

    def __init__(self, evaluations: int | None) -> None:
        self._evaluations = evaluations
        self._accuracies: dict[Turn, dict[int, float]] = {}

    def tell(self, stage: int, lap: int, epoch: int, accuracy: float) -> None:
        """A stage has been evaluated after an epoch; in order of epochs."""
        self._accuracies.setdefault((stage, lap), {})[epoch] = accuracy

    def is_known(self, stage: int, lap: int, epoch: int) -> bool:
        """Whether the evaluation after an epoch is known; always, where none is asked for."""
        return self._evaluations is None or epoch in self._accuracies.get((stage, lap), {})

    def has_stopped(self, stage: int, lap: int, epoch: int) -> bool:
        """Whether, by the evaluations up to that of an epoch, the stage's training ends."""
        if self._evaluations is None:
            return False
        best, since = -1.0, 0
        for evaluated, accuracy in self._accuracies.get((stage, lap), {}).items():
            if evaluated > epoch:
                break
            best, since = (accuracy, 0) if accuracy > best else (best, since + 1)
            if since >= self._evaluations:
                return True
        return False
