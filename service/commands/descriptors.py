"""How many files and connections this process may have open: as many as the system lets it.

Knows no server: it is asked for a number of connections and tells how many there is room for.
"""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

OTHERS = 256
"""Descriptors that are not connections: pipes to replicas, files, libraries; and connections about to be refused."""


def fit_connections(connections: int) -> int:
    """Raises the soft limit to the hard one; fewer than were asked for are told of in the log."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard >= connections + OTHERS:
        return connections
    allowed = max(1, hard - OTHERS)
    logger.warning("fewer connections than set: the hard limit of open files is low", extra={"connections": allowed})
    return allowed
