"""A labelled example, and how each task puts it as a choice. Knows no files."""

from __future__ import annotations

from dataclasses import dataclass

from service.tasks import nli, similarity
from service.tasks.unimc import Choice


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task with its answer, an index into `options`.

    `task` is "classify", "mrc", "similarity" or "nli". For the last two `options` are the names of the classes (in the
    order of the task's readings) and `texts` is the pair.
    """

    task: str
    texts: tuple[str, ...]
    options: tuple[str, ...]
    answer: int
    question: str | None = None

    def as_choice(self) -> Choice:
        """The UniMC form, as the service itself would put it."""
        if self.task == "similarity":
            return similarity.as_choice(*self.texts)
        if self.task == "nli":
            return nli.as_choice(*self.texts)
        return Choice(self.options, self.texts, self.question)
