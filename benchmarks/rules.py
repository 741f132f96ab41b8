"""How much does the evaluation of the Prometheus rules cost, against those of another commit, on the same data?

    python -m benchmarks.rules --baseline COMMIT [--pods 4] [--models 2] [--days 3] [--json FILE]

Three days of samples of every series that the rules read, with the labels that the service gives them, become blocks of
a Prometheus (`promtool tsdb create-blocks-from openmetrics`), as do the series that each set of rules records. A real
Prometheus then answers the expression of each rule at the end of the data, several times; its engine reports the
seconds, of which the median counts, and the samples that it has read (`stats`). A rule costs these times its
evaluations a minute, by the interval of its group, or 15 s without one. Samples do not depend on what else the machine
does; seconds do, and their ratio less.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from prometheus_client import CollectorRegistry

from benchmarks.common import about, parser_of, save
from service.metrics import Metrics
from tests.support.monitoring import ROOT, SECONDS, get, run_process, until_answers
from tests.support.servers import free_port

RULES = ("docker/prometheus/rules/recordings.yaml", "docker/prometheus/rules/alerts.yaml")
TASKS = ("classify", "similarity", "mrc", "nli", "fill-mask", "embed")
END = 1_790_000_000 // 7200 * 7200
BLOCK_S = 7200
EVERY_S = 15
"""The evaluation interval of docker/prometheus/prometheus.yml."""
NAME = re.compile(r"(?<![\w:])(erlangshen[\w:]+|process_\w+|up)\b")


class Cost(NamedTuple):
    """A minute."""

    samples: float
    seconds: float


class Rule(NamedTuple):
    name: str
    expr: str
    every_s: float


def main(argv: Sequence[str]) -> int:
    parser = parser_of("rules", __doc__)
    parser.add_argument("--baseline", required=True, help="commit whose rules are compared")
    parser.add_argument("--pods", type=int, default=4)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--days", type=float, default=3)
    parser.add_argument("--scrape-s", type=int, default=30, help="seconds between two samples of a series")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    if shutil.which("promtool") is None or shutil.which("prometheus") is None:
        print("not installed: prometheus (on Debian: apt install prometheus)")
        return 2
    sets = {
        "baseline": rules_of([git_show(f"{arguments.baseline}:{path}") for path in RULES]),
        "now": rules_of([(ROOT / path).read_text() for path in RULES]),
    }
    series = series_of(sets, arguments.pods, arguments.models)
    costs: dict[str, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="rules-") as name:
        raw = Path(name) / "raw"
        num_samples = write_blocks(series, raw, arguments.days, arguments.scrape_s)
        for which, rules in sets.items():
            folder = Path(name) / which
            shutil.copytree(raw, folder)
            write_blocks(
                recorded_series(rules, arguments.models), folder, arguments.days, min(r.every_s for r in rules)
            )
            costs[which] = measure(rules, folder, arguments.repeats)
    report = about(arguments, argv) | {
        "setup": {
            "baseline": arguments.baseline,
            "pods": arguments.pods,
            "models": arguments.models,
            "days": arguments.days,
            "scrape_s": arguments.scrape_s,
            "series": len(series),
            "samples": num_samples,
        },
        "samples_a_minute": {which: round(sum(one.samples for one in by.values())) for which, by in costs.items()},
        "seconds_a_minute": {which: round(sum(one.seconds for one in by.values()), 5) for which, by in costs.items()},
        "most_expensive": {
            which: {name: by[name]._asdict() for name in sorted(by, key=lambda name: -by[name].seconds)[:5]}
            for which, by in costs.items()
        },
    }
    for kind in ("samples", "seconds"):
        a_minute = report[f"{kind}_a_minute"]
        report[f"ratio_of_{kind}"] = round(a_minute["baseline"] / a_minute["now"], 1)
    print(json.dumps(report, indent=2))
    save(report, arguments.json)
    return 0


def git_show(what: str) -> str:
    return subprocess.run(["git", "show", what], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def rules_of(texts: Sequence[str]) -> list[Rule]:
    """Names are made unique, as burn-rate alerts and recordings of several series share theirs."""
    found = []
    for text in texts:
        for group in yaml.safe_load(text)["groups"]:
            interval = group.get("interval", f"{EVERY_S}s")
            every = int(interval[:-1]) * SECONDS[interval[-1]]
            for rule in group["rules"]:
                found.append(Rule(f"{len(found)} {rule.get('record') or rule['alert']}", rule["expr"], every))
    return found


def series_of(sets: Mapping[str, Sequence[Rule]], pods: int, models: int) -> list[str]:
    """The series of the service that a rule of either set names; of histograms the buckets that are used."""
    exprs = " ".join(rule.expr for rules in sets.values() for rule in rules)
    names, bounds = set(NAME.findall(exprs)), set(re.findall(r'le="([\d.]+)"', exprs))
    metrics = Metrics(CollectorRegistry())
    served = [f"model-{number}" for number in range(models)]
    metrics.declare(served, ["cpu"], list(TASKS))
    for model in served:
        metrics.declare_predictions("nli", model, ["contradiction", "neutral", "entailment"])
    found = []
    for pod in range(pods):
        place = f'job="erlangshen",namespace="nlp",pod="erlangshen-{pod}",instance="10.0.0.{pod}:8000"'
        found += [f"up{{{place}}}", f"process_start_time_seconds{{{place}}}", f"process_cpu_seconds_total{{{place}}}"]
        for family in metrics.registry.collect():
            for sample in family.samples:
                if sample.name in names and sample.labels.get("le", "0.6") in bounds:
                    labels = "".join(f',{name}="{value}"' for name, value in sample.labels.items())
                    found.append(f"{sample.name}{{{place}{labels}}}")
    return found


def recorded_series(rules: Sequence[Rule], models: int) -> list[str]:
    """The history of the recorded series: those by model have one for each and one for all together."""
    found = []
    served = ["", *(f',model="model-{number}"' for number in range(models)), ',model="none"']
    for rule in rules:
        name = rule.name.partition(" ")[2]
        if ":" in name:
            place = 'job="erlangshen",namespace="nlp"' if "namespace" in rule.expr else 'job="erlangshen"'
            codes = [f',code="{code}"' for code in (200, 429, 500, 503, 504)] if "code)" in rule.expr else [""]
            each = served if "model)" in rule.expr else served[:1]
            found += [f"{name}{{{place}{model}{code}}}" for model in each for code in codes]
    return sorted(set(found))


def write_blocks(series: Sequence[str], folder: Path, days: float, step: float) -> int:
    """A file for each block: promtool reads its file once for every block. Returns the number of samples."""
    start, chance = END - round(days * 86400), random.Random(0)
    totals: defaultdict[str, float] = defaultdict(float)
    grouped: dict[str, list[str]] = defaultdict(list)
    for one in series:
        grouped[one.partition("{")[0]].append(one)
    num_samples = 0
    if not series:
        return 0
    for begin in range(start, END + BLOCK_S, BLOCK_S):
        times = range(begin, min(begin + BLOCK_S, END + 60), round(step))
        with tempfile.NamedTemporaryFile("w", suffix=".om", dir=folder.parent) as file:
            for name, members in grouped.items():
                file.write(f"# TYPE {name} gauge\n")
                for one in members:
                    value, steps = totals[one], 1 if name == "up" or ":" in name else chance.random() * 5
                    for time in times:
                        value = 1 if name == "up" else value + steps
                        file.write(f"{one} {value:.1f} {time}\n")
                    totals[one] = value
                    num_samples += len(times)
            file.write("# EOF\n")
            file.flush()
            command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", file.name, str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return num_samples


def measure(rules: Sequence[Rule], folder: Path, repeats: int) -> dict[str, Cost]:
    port, log = free_port(), folder.parent / "prometheus.log"
    (folder / "prometheus.yml").write_text("global: {}\n")
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with run_process(log, command):
        until_answers(f"http://127.0.0.1:{port}/-/ready", log)
        return {rule.name: cost(port, rule, repeats) for rule in rules}


def cost(port: int, rule: Rule, repeats: int) -> Cost:
    form = urllib.parse.urlencode({"query": rule.expr, "time": END, "stats": "all"}).encode()
    stats = [get(f"http://127.0.0.1:{port}/api/v1/query", form)["data"]["stats"] for _ in range(repeats)]
    seconds = statistics.median(one["timings"]["execTotalTime"] for one in stats)
    return Cost(*(value * 60 / rule.every_s for value in (stats[0]["samples"]["totalQueryableSamples"], seconds)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
