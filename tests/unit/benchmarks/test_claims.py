"""The commands of the claims are ones that the command line takes, and nothing is run without a GPU."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from benchmarks import claims
from service.commands import evaluate, finetune_flags

CLAIMS = list(claims.claims("DATA", Path("runs")))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_a_command_is_parsed_by_the_command_line(claim: claims.Claim) -> None:
    parser = ArgumentParser(exit_on_error=False)
    (evaluate if claim.words[0] == "evaluate" else finetune_flags).add_arguments(parser)
    assert parser.parse_args(claim.words[1:]).suite in claim.words


def test_a_head_of_the_1_3b_model_fits_on_a_card_of_40_gb_and_the_rows_of_a_choice_need_checkpointing() -> None:
    head = next(claim for claim in CLAIMS if claim.title == "CLUE, head")
    assert head.describe("a100-80")[3] == "no"
    assert head.describe("a100-40")[0] != "-"


def test_without_a_gpu_the_commands_are_printed_and_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "num_cuda_devices", lambda: 0)
    monkeypatch.setattr(claims.subprocess, "run", None)
    assert claims.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("python -m service ") == len(CLAIMS)
    assert printed.endswith("no GPU is here: nothing was run\n")
