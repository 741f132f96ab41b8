"""What tests and benchmarks share: engines that fail on request, servers as processes, clients, proxies, monitoring."""
