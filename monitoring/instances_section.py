"""The section of the dashboard *Service* on what is up: instances, replicas, versions, and what is seen from outside.

Its numbers are 0, and red, when nothing reports: an instance that is gone cannot say so.
"""

from __future__ import annotations

from monitoring.board import Section
from monitoring.panels import GREEN, ORANGE, RED, Query, Steps, lines, number, rows, timeline
from monitoring.promql import DEPLOYMENT, HERE, or_zero, select, share
from monitoring.settings import SETTINGS

ALL_UP: Steps = ((None, RED), (0.01, ORANGE), (1, GREEN))
WHICH = "cluster, namespace, job, pod, instance"
UP = f"up{{{DEPLOYMENT}}}"
KUBE = f'cluster=~"$cluster",namespace=~"$namespace",deployment=~"{SETTINGS.job}"'
# The share of those that report would be 1 as long as one is left.
WANTED = f"(sum(kube_deployment_spec_replicas{{{KUBE}}}) or max_over_time(count({UP})[$__range:1m]))"
REPLICAS = select("replica_up")
REACHABLE = f"((sum({UP}) > bool 0) or vector(0))"
PROBE = f'probe_success{{cluster=~"$cluster",namespace=~"$namespace",job=~"{SETTINGS.probe_job}"}}'
FIRING = 'ALERTS{cluster=~"$cluster|",namespace=~"$namespace|",alertname=~"Erlangshen.+",alertstate="firing"'

INSTANCES = Section(
    "Instances",
    [
        number(
            "Instances up",
            "Instances of the service that Prometheus reaches now.",
            Query(or_zero(f"sum({UP})")),
            steps=((None, RED), (1, GREEN)),
            filled=True,
        ),
        number(
            "Wanted instances up",
            "Share of the instances that should be up: the replicas of the Deployment where kube-state-metrics is "
            "scraped, otherwise the most that Prometheus knew in the time range.",
            Query(or_zero(share(f"sum({UP})", WANTED))),
            unit="percentunit",
            steps=ALL_UP,
            filled=True,
        ),
        number(
            "Replicas ready",
            "Share of the replicas that are ready, of the most that there were in the time range.",
            Query(or_zero(share(f"sum({REPLICAS})", f"max_over_time(count({REPLICAS})[$__range:1m])"))),
            unit="percentunit",
            steps=ALL_UP,
            filled=True,
        ),
        number(
            "Reachable",
            "Share of the time range in which at least one instance was up. The error budgets below are counted by the "
            "service itself, so an outage does not use them; it shows here.",
            Query(f"avg_over_time({REACHABLE}[$__range:1m])"),
            unit="percentunit",
            steps=((None, RED), (0.99, ORANGE), (0.999, GREEN)),
            filled=True,
        ),
        number(
            "Black-box probe",
            "Share of the time range in which a probe from outside was answered; no data without a probe, which "
            "docs/dashboards.md shows how to set up.",
            Query(f"min(avg_over_time({PROBE}[$__range]))"),
            unit="percentunit",
            steps=((None, RED), (0.99, ORANGE), (0.999, GREEN)),
            filled=True,
        ),
        number(
            "Firing alerts",
            "Alerts of severity critical and warning that fire now.",
            Query(or_zero(f'count({FIRING},severity!="info"}})')),
            steps=((None, GREEN), (1, RED)),
            filled=True,
        ),
        timeline(
            "Up by instance",
            "Whether Prometheus reaches each instance. A band that ends is a pod that no longer exists.",
            Query(f"max by ({WHICH}) (up{{{HERE}}})", "{{namespace}} {{pod}} {{instance}}"),
            {"0": ("down", RED), "1": ("up", GREEN)},
        ),
        lines(
            "Instances by version",
            "Number of instances of each version. Two versions are a rollout.",
            Query(f"count by (version) ({select('build_info')})", "{{version}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Starts of the HTTP process",
            "Starts within 15 minutes of a process that kept its address: a container that is restarted.",
            Query(
                f"sum by (pod, instance) (changes(process_start_time_seconds{{{HERE}}}[15m]))", "{{pod}} {{instance}}"
            ),
            width=6,
        ),
        rows(
            "Instances and versions",
            "Each instance that Prometheus knows, with its version, the time since its start, and its ready replicas.",
            {
                "Up": (f"max by ({WHICH}) (up{{{HERE}}})", "short"),
                "Since start": (f"max by ({WHICH}) (time() - process_start_time_seconds{{{HERE}}})", "s"),
                "Ready replicas": (f"sum by ({WHICH}) ({select('replica_up')})", "short"),
                "Builds": (f"count by ({WHICH}, version) ({select('build_info')})", "short"),
            },
            {
                "cluster": "Cluster",
                "namespace": "Namespace",
                "pod": "Pod",
                "instance": "Instance",
                "version": "Version",
            },
            steps={"Up": ((None, RED), (1, GREEN)), "Ready replicas": ((None, RED), (1, GREEN))},
        ),
    ],
)
