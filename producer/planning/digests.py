"""What plans hold of models' weights, found out for several at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Thread

from jobs.models.fingerprints import commits_of, route_digest
from jobs.models.table import ModelTable

THREADS = 16


def find_digests(table: ModelTable, routes: Sequence[str]) -> dict[str, str | Exception]:
    """The digest of each route, or why there is none, in their order. Adds to the table's commits.

    At once, as each may wait for the hub.
    """
    found = dict[str, str | Exception]()

    def find(some: Iterable[str]) -> None:
        for route in some:
            try:
                for name, commit in commits_of(table, route).items():
                    table.commits.setdefault(name, commit)  # all go by the first answer
                found[route] = route_digest(table, route)
            except Exception as error:
                found[route] = error

    # Daemons: Ctrl-C does not wait for the hub.
    shares = filter(None, (routes[n::THREADS] for n in range(THREADS)))
    threads = [Thread(target=find, args=(share,), daemon=True) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {route: found[route] for route in routes}
