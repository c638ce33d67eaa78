"""Which requests of some share pipeline calls, and how many slots these have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import groupby
from operator import attrgetter

from jobs.models.families import family_named
from jobs.models.table import ModelTable
from jobs.requests import BatchKey, Request
from producer.planning.chunks import Calls, collect
from producer.planning.rates import Estimate, Rates, estimate
from producer.planning.slots import fit

Group = tuple[BatchKey, list[Request]]  # and what all of these share, the slots of their calls


@dataclass(frozen=True, slots=True)
class Tally:
    """Images that calls of one kind surely make, and the least and greatest guidance of these.

    guidance: None where it is the pipeline's own default.
    """

    images: int
    guidance: tuple[float, float] | None

    def __add__(self, other: Tally) -> Tally:
        """Of both, which are of one kind: either all of them have a guidance or none has."""
        guidance = self.guidance
        if guidance and other.guidance:
            guidance = min(guidance[0], other.guidance[0]), max(guidance[1], other.guidance[1])
        return Tally(self.images + other.images, guidance)


Tallies = dict[BatchKey, Tally]  # by what one call shares


def tally(groups: Iterable[Group]) -> Tallies:
    """Count what is surely needed: not the candidates of later rounds."""
    found: Tallies = {}
    for key, requests in groups:
        needed = [one.key for one in requests if one.candidate is None or not one.round]
        if needed:
            given = {one.guidance_scale for one in needed if one.guidance_scale is not None}
            guidance = (min(given), max(given)) if given else None
            join(found, {key: Tally(len(needed), guidance)})
    return found


def join(into: Tallies, others: Tallies) -> None:
    for key, some in others.items():
        into[key] = into[key] + some if key in into else some


@dataclass(frozen=True)
class Grouper:
    """rates: what is known of the models' times."""

    table: ModelTable
    rates: Rates

    def call_key(self, key: BatchKey) -> BatchKey:
        """What requests of one call share; see Family.call_key."""
        return family_named(self.table.get(key.model).family).call_key(key)

    def gather(self, requests: Sequence[Request], calls: Sequence[BatchKey]) -> list[Group]:
        """Requests of each round by what those of one call share, which `calls` has of each."""
        # By identity first: to compare the keys of all takes three times as long.
        rows: defaultdict[tuple[int, int | None], list[Request]] = defaultdict(list)
        for request, call in zip(requests, calls, strict=True):
            rows[id(call), request.candidate and request.round].append(request)
        known = dict(zip(map(id, calls), calls, strict=True))
        together: defaultdict[tuple[BatchKey, int], list[Request]] = defaultdict(list)
        for (one, number), same in rows.items():
            together[known[one], number or 0] += same
        return [(key, same) for (key, _), same in together.items()]

    def width(self, key: BatchKey) -> int:
        """The most requests of one call."""
        return key.slots_within(self.table.get(key.model).batch_width)

    def divide(self, group: Group) -> tuple[Group, Group]:
        """What fills calls, and what is left over.

        The same requests are left over in whatever order they stand.
        """
        key, requests = group
        count = len(requests) % self.width(key)
        if not count:
            return group, (key, [])
        left = nsmallest(count, requests, key=attrgetter("job_id"))
        if count == len(requests):
            return (key, []), (key, left)
        others = {one.job_id for one in left}
        return (key, [one for one in requests if one.job_id not in others]), (key, left)

    def fit(self, group: Group) -> list[Group]:
        """Requests that share a call's key by the slots of their calls, as their new keys say."""
        key, requests = group
        model = self.table.get(key.model)
        # Each other number of slots would have to be compiled first.
        if key.slots or model.options.compile:
            return [group]
        _, (_, last) = self.divide(group)
        if not last:
            return [group]
        narrow: dict[str, int] = {}
        for slots in fit(len(last), model.batch_width):
            if slots < model.batch_width:
                narrow |= dict.fromkeys((one.job_id for one in last[:slots]), slots)
            last = last[slots:]
        fitted: defaultdict[int, list[Request]] = defaultdict(list)
        for one in requests:
            if slots := narrow.get(one.job_id, 0):
                one = one.with_key(one.key.with_slots(slots))
            fitted[slots].append(one)
        return [(key.with_slots(slots), some) for slots, some in fitted.items()]

    def calls(self, grouped: Sequence[Group]) -> Calls:
        """The pipeline calls that a shard's rows make, in their order."""
        calls: list[tuple[str, int, int, float]] = []
        guessed: set[str] = set()
        estimates: dict[tuple[object, ...], Estimate] = {}
        start = 0
        # Two may share a key: of lines that say the slots that others got.
        for (number, key), groups in groupby(grouped, _round_and_key):
            images = sum(len(requests) for _, requests in groups)
            slots = self.width(key)
            like = slots, key.model, key.adapter, key.width, key.height, key.steps
            of_one = estimates.get(like)
            if of_one is None:
                of_one = estimates[like] = estimate(key, slots, self.table, self.rates)
            if not of_one.device:
                guessed.add(key.model)
            end = start + images
            stops = (min(first + slots, end) for first in range(start, end, slots))
            calls += ((key.model, number, stop, of_one.seconds) for stop in stops)
            start = end
        return collect(calls, guessed)


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Those of one round and model together, and within it those of one adapter."""
    return sorted(groups, key=_place)


def _place(group: Group) -> tuple[int, str, str, str]:
    number, key = _round_and_key(group)
    return number, key.model, key.adapter, tuple.__repr__(key)


def _round_and_key(group: Group) -> tuple[int, BatchKey]:
    key, requests = group
    return requests[0].round, key
