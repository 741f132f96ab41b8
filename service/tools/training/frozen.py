"""The outputs of a frozen encoder, computed once for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from service.tools.training.networks import HeadNetwork
from service.tools.training.samples import Collator, Problem, Sample, Samples

NUM_ROWS = 32
"""Of a forward."""


class FrozenVectors:
    """The vectors of the rows of the last run. A run with the same encoder computes only the rows that are new to it:
    the folds of a task and the runs of several seeds share most of their texts."""

    def __init__(self) -> None:
        self._encoder: Path | None = None
        self._vectors: dict[bytes, Tensor] = {}
        self.num_computed = 0
        """Rows that went through an encoder, in all runs."""

    def replace_rows(self, network: HeadNetwork, problem: Problem, splits: Sequence[Samples], encoder: Path) -> None:
        """Replaces the rows of the splits by the outputs of the frozen encoder: each epoch reads these.

        `encoder` is the folder of the start, whose weights the encoder has.
        """
        known = self._vectors if encoder == self._encoder else {}
        samples = {_key(sample): sample for split in splits for sample in split.samples}
        missing = {key: sample for key, sample in samples.items() if key not in known}
        made = known | _compute(network, problem, missing)
        self.num_computed += len(missing)
        for split in splits:
            split.with_vectors(torch.stack([made[_key(sample)] for sample in split.samples]))
        self._encoder = encoder
        self._vectors = {
            _key(sample): sample.vector for split in splits for sample in split.samples if sample.vector is not None
        }


def _key(sample: Sample) -> bytes:
    row = sample.encoding
    return row.ids.tobytes() + row.segment_ids.tobytes()


def _compute(network: HeadNetwork, problem: Problem, samples: dict[bytes, Sample]) -> dict[bytes, Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    collate = Collator(problem)
    keys = sorted(samples, key=lambda key: samples[key].encoding.num_tokens)
    found: dict[bytes, Tensor] = {}
    network.to(device).eval()
    for start in range(0, len(keys), NUM_ROWS):
        rows = keys[start : start + NUM_ROWS]
        batch = collate([samples[key] for key in rows])
        del batch["labels"]
        with torch.inference_mode():
            vectors = network.encode(**{name: tensor.to(device) for name, tensor in batch.items()})
        found |= {key: vector.clone() for key, vector in zip(rows, vectors.float().cpu(), strict=True)}
    network.train()
    return found
