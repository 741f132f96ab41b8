"""Sections of the dashboard *Batching and device* on what is around the service: its container and its GPUs.

The metrics are those of cAdvisor and kube-state-metrics, which kube-prometheus-stack scrapes, and of NVIDIA's
dcgm-exporter. Without them the panels have no data.
"""

from __future__ import annotations

from monitoring.board import Section
from monitoring.panels import Query, lines
from monitoring.promql import WINDOW, share
from monitoring.settings import SETTINGS

POD = 'cluster=~"$cluster",namespace=~"$namespace",pod=~"$pod"'
CONTAINER = f'{POD},container="{SETTINGS.container}"'
BY_GPU = "Hostname, gpu"
GPU = "{{Hostname}} GPU {{gpu}}"


def cadvisor(metric: str) -> str:
    return f"sum by (namespace, pod) (rate({metric}{{{CONTAINER}}}[{WINDOW}]))"


def limit(resource: str) -> str:
    return f'max by (namespace, pod) (kube_pod_container_resource_limits{{{CONTAINER},resource="{resource}"}})'


def dcgm(metric: str) -> str:
    """By GPU. The exporter names the pod that uses the GPU; unless the scrape honours its labels, Prometheus renames
    them. Outside of Kubernetes no pod is named."""
    ours = f'{metric}{{{POD},container=~"{SETTINGS.container}|"}}'
    renamed = ",".join(
        (
            'cluster=~"$cluster"',
            'exported_namespace=~"$namespace"',
            'exported_pod=~"$pod"',
            f'exported_container="{SETTINGS.container}"',
        )
    )
    return f"max by ({BY_GPU}) ({ours} or {metric}{{{renamed}}})"


AROUND = Section(
    "Container (cAdvisor)",
    [
        lines(
            "Container CPU",
            "Cores in use by the whole container, HTTP process and replicas, and its limit.",
            Query(cadvisor("container_cpu_usage_seconds_total"), "{{pod}}"),
            Query(limit("cpu"), "{{pod}} limit"),
            width=8,
            dashed=".* limit",
        ),
        lines(
            "Container CPU, throttled",
            "Share of the scheduler's periods in which the CPU limit stopped the container. Batches then take longer "
            "than predicted.",
            Query(
                share(
                    cadvisor("container_cpu_cfs_throttled_periods_total"), cadvisor("container_cpu_cfs_periods_total")
                ),
                "{{pod}}",
            ),
            unit="percentunit",
            most=1,
            width=8,
        ),
        lines(
            "Container memory",
            "Working set of the container, and the limit at which the kernel kills a process of it.",
            Query(f"max by (namespace, pod) (container_memory_working_set_bytes{{{CONTAINER}}})", "{{pod}}"),
            Query(limit("memory"), "{{pod}} limit"),
            unit="bytes",
            width=8,
            dashed=".* limit",
        ),
        lines(
            "Container restarts",
            "Restarts of the container within an hour, of any cause.",
            Query(
                f"sum by (namespace, pod) (increase(kube_pod_container_status_restarts_total{{{CONTAINER}}}[1h]))",
                "{{pod}}",
            ),
        ),
        lines(
            "Pods that wait",
            "Pods whose container does not run, by reason: ImagePullBackOff, CrashLoopBackOff, ContainerCreating.",
            Query(
                f"sum by (namespace, pod, reason) (kube_pod_container_status_waiting_reason{{{CONTAINER}}}) > 0",
                "{{pod}} {{reason}}",
            ),
        ),
    ],
)

GPUS = Section(
    "GPU (DCGM)",
    [
        lines(
            "GPU utilisation",
            "Share of the time in which the GPU runs a kernel, and in which its tensor cores compute.",
            Query(f"{dcgm('DCGM_FI_DEV_GPU_UTIL')} / 100", GPU),
            Query(dcgm("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), f"{GPU} tensor cores"),
            unit="percentunit",
            most=1,
            width=8,
        ),
        lines(
            "GPU memory",
            "Memory in use, and the size of the GPU.",
            Query(f"{dcgm('DCGM_FI_DEV_FB_USED')} * 1048576", GPU),
            Query(f"({dcgm('DCGM_FI_DEV_FB_USED')} + {dcgm('DCGM_FI_DEV_FB_FREE')}) * 1048576", f"{GPU} total"),
            unit="bytes",
            width=8,
            dashed=".* total",
        ),
        lines(
            "GPU temperature",
            "Degrees Celsius. Most data centre GPUs lower their clock between 80 and 90.",
            Query(dcgm("DCGM_FI_DEV_GPU_TEMP"), GPU),
            unit="celsius",
            limit=85,
            width=8,
        ),
        lines(
            "GPU clock",
            "Clock of the multiprocessors. Lower under load than before: heat or power.",
            Query(f"{dcgm('DCGM_FI_DEV_SM_CLOCK')} * 1000000", GPU),
            unit="hertz",
            width=8,
        ),
        lines("GPU power", "Watts.", Query(dcgm("DCGM_FI_DEV_POWER_USAGE"), GPU), unit="watt", width=8),
        lines(
            "GPU errors",
            "Number of the last Xid error of each GPU, 0 for none; 48, 63, 64, 79, 94 and 95 are hardware faults.",
            Query(dcgm("DCGM_FI_DEV_XID_ERRORS"), GPU),
            width=8,
        ),
    ],
)
