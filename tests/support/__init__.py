"""Shared by tests and benchmarks: engines that fail on request, server processes, clients, proxies, monitoring."""
