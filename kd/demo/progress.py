"""Progress of one training: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Steps between two lines where there is no terminal.
STEPS_PER_LINE = 100


class TrainingProgress(pl.Callback):
    """Shows steps, loss and the time left.

    Args:
        title: what is being trained.
        console: where to show it.
    """

    def __init__(self, title: str, console: Console) -> None:
        super().__init__()
        self.title, self.console = title, console
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
            )
            self.bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True
            )
            self.task = self.bar.add_task(self.title, total=trainer.max_steps, completed=trainer.global_step, loss="")
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        loss = f"loss {float(trainer.callback_metrics['loss']):.3f}"
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, loss=loss)
        elif trainer.global_step % STEPS_PER_LINE == 0:
            self.console.print(
                f"  {self.title}: step {trainer.global_step}/{trainer.max_steps}, {loss}", highlight=False
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
