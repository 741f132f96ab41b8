"""The dashboard for who owns the model: what it decides, how sure it is, and whether either has moved."""

from __future__ import annotations

from monitoring.board import Board, Choice, Section
from monitoring.drift import low_confidence, moved, own_label_share, truncated
from monitoring.panels import GREEN, ORANGE, RED, Query, bars, heat, lines, number
from monitoring.promql import HERE, buckets, mean, rate, share

CHOSEN = f'{HERE},task=~"$task",model=~"$model"'
MATCH = 'task=~"$task",model=~"$model"'
TASK = 'task=~"$task"'
BOTH = "task, model"
EACH = "{{task}} {{model}}"

GLANCE = Section(
    "At a glance",
    [
        number(
            "Decisions a second",
            "Results with a label: of classify, similarity, nli and mrc.",
            Query(rate("predictions_total", MATCH)),
            unit="ops",
        ),
        number(
            "Mean score",
            "How sure the model is of its decisions, 0 to 1.",
            Query(mean("prediction_score", MATCH)),
            unit="percentunit",
        ),
        number(
            "Low confidence",
            "Share of the decisions whose score is no more than what is chosen above.",
            Query(low_confidence(CHOSEN, "$low", "$__rate_interval")),
            unit="percentunit",
            steps=((None, GREEN), (0.2, ORANGE), (0.4, RED)),
        ),
        number(
            "Labels moved",
            "How far the shares of the labels are from what they were at the time chosen above: 0 not at all, 1 "
            "wholly. The task and model that moved most.",
            Query(f"max({moved(CHOSEN, '$over', '$before')})"),
            unit="percentunit",
            steps=((None, GREEN), (0.1, ORANGE), (0.2, RED)),
        ),
        number(
            "Truncated",
            "Share of the inputs that were cut to fit the model: what was cut was not read.",
            Query(truncated(f"{HERE},{TASK}", "$__rate_interval")),
            unit="percentunit",
            steps=((None, GREEN), (0.02, ORANGE), (0.1, RED)),
        ),
        number(
            "Tokens of an input",
            "How long texts are, on average.",
            Query(share(rate("input_tokens_total", MATCH), rate("inputs_total", MATCH))),
        ),
    ],
)

LABELS = Section(
    "Labels",
    [
        lines(
            "Label shares",
            "What was decided, as shares of each task and model. Labels and choices that requests bring along "
            "are not shown.",
            Query(own_label_share(CHOSEN, "$__rate_interval"), f"{EACH} {{{{label}}}}"),
            unit="percentunit",
            most=1,
            width=16,
        ),
        bars(
            "Label shares over the time shown",
            "The same, as one number for each label.",
            Query(own_label_share(CHOSEN, "$__range"), f"{EACH} {{{{label}}}}"),
        ),
        lines(
            "How far the labels have moved",
            "Half the sum of the differences between the shares now and then (total variation): 0.2 means that "
            "every fifth decision is another one.",
            Query(moved(CHOSEN, "$over", "$before"), EACH),
            unit="percentunit",
            limit=0.2,
        ),
        lines(
            "Decisions by task",
            "By task and model.",
            Query(rate("predictions_total", MATCH, BOTH), EACH),
            unit="ops",
            stacked=True,
        ),
    ],
)

CONFIDENCE = Section(
    "Confidence",
    [
        heat(
            "Scores",
            "How many decisions a second had which score.",
            rate("prediction_score_bucket", MATCH, "le"),
            unit="short",
        ),
        lines(
            "Low confidence by task",
            "Share of the decisions whose score is no more than what is chosen above. What is low depends on the "
            "task: of two labels a score is never below one half.",
            Query(low_confidence(CHOSEN, "$low", "$__rate_interval", BOTH), EACH),
            unit="percentunit",
        ),
        lines(
            "Scores, percentiles",
            "10, 50 and 90 of 100 decisions had no higher score.",
            *(
                Query(f"histogram_quantile({q}, {buckets('prediction_score', MATCH)})", f"p{q * 100:.0f}")
                for q in (0.1, 0.5, 0.9)
            ),
            unit="percentunit",
            most=1,
        ),
        lines(
            "Mean score by task",
            "By task and model.",
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
            "Share of the inputs that were cut to fit the model.",
            Query(truncated(f"{HERE},{TASK}", "$__rate_interval", "task"), "{{task}}"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Tokens of an input by task",
            "How long texts are, on average; a candidate or a choice of labels counts with each input.",
            Query(share(rate("input_tokens_total", MATCH, "task"), rate("inputs_total", MATCH, "task")), "{{task}}"),
            width=8,
        ),
        lines(
            "Inputs a second",
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
    "What the models decide and how sure they are: drift that the owner of a model should see before its users do.",
    [GLANCE, LABELS, CONFIDENCE, INPUTS],
    [
        Choice("low", "Low score", ("0.6", "0.5", "0.7", "0.8", "0.9")),
        Choice("over", "Labels taken over", ("30m", "5m", "6h", "1d")),
        Choice("before", "Compared with", ("1d", "1h", "1w")),
    ],
)
