"""The dashboard *Predictions*: labels, scores and inputs of the models, and their drift."""

from __future__ import annotations

from monitoring.board import Board, Choice, Section
from monitoring.drift import low_confidence, moved, own_label_share, truncated
from monitoring.panels import GREEN, ORANGE, RED, Query, bars, heat, lines, number
from monitoring.promql import HERE, increase, mean, quantile, rate, select, share, total

CHOSEN = f'{HERE},task=~"$task",model=~"$model"'
MATCH = 'task=~"$task",model=~"$model"'
TASK = 'task=~"$task"'
BOTH = "task, model"
EACH = "{{task}} {{model}}"

GLANCE = Section(
    "Overview",
    [
        number(
            "Predictions per second",
            "Results with a label: classify, similarity, nli and mrc.",
            Query(rate("predictions_total", MATCH)),
            unit="ops",
        ),
        number(
            "Mean score",
            "Mean score of the predictions, 0 to 1.",
            Query(mean("prediction_score", MATCH)),
            unit="percentunit",
        ),
        number(
            "Low confidence",
            "Share of the predictions with at most the score selected above.",
            Query(low_confidence(CHOSEN, "$low", "$__rate_interval")),
            unit="percentunit",
            steps=((None, GREEN), (0.2, ORANGE), (0.4, RED)),
        ),
        number(
            "Label drift",
            "Total variation distance between the label shares now and at the time selected above: 0 for equal "
            "shares, 1 for no label in common. The maximum over tasks and models.",
            Query(f"max({moved(CHOSEN, '$over', '$before')})"),
            unit="percentunit",
            steps=((None, GREEN), (0.1, ORANGE), (0.2, RED)),
        ),
        number(
            "Truncated",
            "Share of the inputs that were truncated to the maximum length of the model.",
            Query(truncated(f"{HERE},{TASK}", "$__rate_interval")),
            unit="percentunit",
            steps=((None, GREEN), (0.02, ORANGE), (0.1, RED)),
        ),
        number(
            "Tokens per input",
            "Mean length of the inputs.",
            Query(share(rate("input_tokens_total", MATCH), rate("inputs_total", MATCH))),
        ),
    ],
)

METHODS = Section(
    "Methods",
    [
        lines(
            "Requests by method",
            "Requests per second by what answered: a choice model and an embedding model together (blend), one of "
            "them, or a fine-tuned classifier.",
            Query(rate("requests_by_method_total", TASK, "task, method"), "{{task}} {{method}}"),
            unit="reqps",
        ),
        lines(
            "Labels of a request",
            "Mean number of labels of a zero-shot classification: all that were scored, and those that a choice model "
            "has read.",
            Query(mean("request_labels", by="of"), "{{of}}"),
        ),
        lines(
            "Label sets in preparation",
            "Lists of labels whose vectors are being computed in the background, and those that have failed.",
            Query(total(select("label_sets_preparing")), "preparing"),
            Query(increase("label_set_vectors_total", 'result="failed"', window="$__rate_interval"), "failed"),
        ),
        lines(
            "Batch jobs",
            "Lines of batch jobs answered per second by result, and the jobs that are being worked on.",
            Query(rate("batch_job_lines_total", by="result"), "lines {{result}}"),
            Query(total(select("batch_jobs_running")), "jobs running"),
            Query(increase("batch_jobs_total", 'status="failed"', window="$__rate_interval"), "jobs failed"),
        ),
        lines(
            "Stored files",
            "Size of the files and batch jobs of all keys on the disk.",
            Query(f"max({select('stored_files_bytes')})", "bytes"),
            unit="bytes",
        ),
        lines(
            "Time of a preparation",
            "Mean seconds until the vectors of a list of labels were kept.",
            Query(mean("label_set_vectors_duration_seconds"), "seconds"),
            unit="s",
        ),
    ],
)

LABELS = Section(
    "Labels",
    [
        lines(
            "Label shares",
            "Share of each label in the predictions of its task and model. Labels and choices sent in requests are "
            "not shown.",
            Query(own_label_share(CHOSEN, "$__rate_interval"), f"{EACH} {{{{label}}}}"),
            unit="percentunit",
            most=1,
            width=16,
        ),
        bars(
            "Label shares over the time range",
            "The same, as one number for each label.",
            Query(own_label_share(CHOSEN, "$__range"), f"{EACH} {{{{label}}}}"),
        ),
        lines(
            "Label drift by task",
            "Total variation distance between the label shares now and at the time selected above: half the sum of "
            "the absolute differences.",
            Query(moved(CHOSEN, "$over", "$before"), EACH),
            unit="percentunit",
            limit=0.2,
        ),
        lines(
            "Predictions by task",
            "Predictions per second by task and model.",
            Query(rate("predictions_total", MATCH, BOTH), EACH),
            unit="ops",
            stacked=True,
        ),
    ],
)

CONFIDENCE = Section(
    "Confidence",
    [
        lines(
            "Decisions",
            "Results of classify per second by decision: a label, none (no label has the min_score), or ambiguous (the "
            "first label leads by less than the margin).",
            Query(rate("decisions_total", MATCH, "decision"), "{{decision}}"),
            unit="ops",
            stacked=True,
        ),
        heat(
            "Scores",
            "Predictions per second by score.",
            rate("prediction_score_bucket", MATCH, "le"),
            unit="short",
        ),
        lines(
            "Low confidence by task",
            "Share of the predictions with at most the score selected above. What is low depends on the task: with two "
            "labels the best score is never below 0.5.",
            Query(low_confidence(CHOSEN, "$low", "$__rate_interval", BOTH), EACH),
            unit="percentunit",
        ),
        lines(
            "Scores, percentiles",
            "10, 50 and 90 % of the predictions had at most this score.",
            *(Query(quantile(q, "prediction_score", MATCH), f"p{q * 100:.0f}") for q in (0.1, 0.5, 0.9)),
            unit="percentunit",
            most=1,
        ),
        lines(
            "Mean score by task",
            "Mean score of the predictions by task and model.",
            Query(mean("prediction_score", MATCH, BOTH), EACH),
            unit="percentunit",
            most=1,
        ),
    ],
)

INPUTS = Section(
    "Inputs",
    [
        lines(
            "Truncated by task",
            "Share of the inputs that were truncated to the maximum length of the model.",
            Query(truncated(f"{HERE},{TASK}", "$__rate_interval", "task"), "{{task}}"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Tokens per input by task",
            "Mean length of the inputs, including their candidates or labels.",
            Query(share(rate("input_tokens_total", MATCH, "task"), rate("inputs_total", MATCH, "task")), "{{task}}"),
            width=8,
        ),
        lines(
            "Inputs per second",
            "By task.",
            Query(rate("inputs_total", MATCH, "task"), "{{task}}"),
            unit="ops",
            stacked=True,
            width=8,
        ),
    ],
)

PREDICTIONS = Board(
    "erlangshen-predictions",
    "Erlangshen / Predictions",
    "Predictions of the models for their owners: label shares, scores, confidence, truncation, and their drift.",
    [GLANCE, METHODS, LABELS, CONFIDENCE, INPUTS],
    [
        Choice("low", "Low score", ("0.6", "0.5", "0.7", "0.8", "0.9")),
        Choice("over", "Window of label shares", ("30m", "5m", "6h", "1d")),
        Choice("before", "Compared with", ("1d", "1h", "1w")),
    ],
)
