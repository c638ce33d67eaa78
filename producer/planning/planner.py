"""One block of manifest lines → a plan shard: validate, seed, group, fit into pipeline calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from jobs.errors import FatalError, InvalidRequest, LineError
from jobs.models.hub import NoSuchWeights
from jobs.models.table import ModelTable
from jobs.output.plan import SHARD_LINES, encode_shard
from jobs.requests import BatchKey, Request
from producer.planning.chunks import Calls, collect
from producer.planning.digests import find_digests
from producer.planning.grouping import Group, Grouper, Tallies, in_order, tally
from producer.planning.intake import Intake
from producer.planning.manifest import Block, Line, parse_lines
from producer.planning.plain import PlainLines, parse_plain
from producer.planning.rates import Rates
from producer.planning.recipes import MAX_IMAGES, PLACEHOLDER, Recipe, as_recipe
from producer.planning.repeats import Hashes
from producer.planning.resolution import PlanOptions, Resolver, UnknownFingerprint

MAX_UNLISTED = 16  # models that lines name and the table lacks; to look one up takes seconds


def _no_hashes() -> Hashes:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class PlannedBlock:
    """A plan shard: one block of lines, or what earlier ones left over.

    shard: its file; raw: the block's lines, gzipped; calls: that its rows make, as far as they
    fill some; tallies: of the requests in these; left: the others, its last rows; numbers and
    identities: of each request of its lines, the line's from 1, and the first 8 bytes of what
    identifies it; jobs: the same of each row's job id; lines: how many stand for requests; keeps:
    whether one of them has columns for the dataset; doubts: what is taken but may not be meant;
    chooses: whether a line chooses among candidates. What plan_blocks yields has errors and doubts
    in the order of lines.

    unidentified: why nobody can tell now what some lines stand for; then it has nothing else.

    carried: requests of earlier shards, numbered `homes`, that it renders: then it has no others.
    """

    shard: bytes = b""
    raw: bytes = b""
    calls: Calls = field(default_factory=lambda: collect((), ()))
    tallies: Tallies = field(default_factory=dict)
    left: Sequence[Group] = ()
    identities: Hashes = field(default_factory=_no_hashes)
    jobs: Hashes = field(default_factory=_no_hashes)
    numbers: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    errors: list[LineError] = field(default_factory=list)
    missing: frozenset[str] = frozenset()  # models whose fingerprints are needed first
    images: Mapping[int, int] = field(default_factory=dict)  # too many: those of each line
    lines: int = 0
    keeps: bool = False
    doubts: list[LineError] = field(default_factory=list)
    chooses: bool = False
    carried: int = 0
    homes: frozenset[int] = frozenset()
    unidentified: FatalError | None = None

    @property
    def requests(self) -> int:
        return len(self.numbers)


_Numbered = Iterable[tuple[int, Line | list[LineError]]]


@dataclass(slots=True)
class _Found:
    """What lines of a block stand for, as PlannedBlock has it.

    calls: what those of one pipeline call share, of each request; overflows: whether they stand for
    more than one shard takes; then nothing else is whole.
    """

    requests: list[Request] = field(default_factory=list)
    calls: Sequence[BatchKey] = ()
    identities: Sequence[int] = ()
    numbers: Sequence[int] = ()
    errors: list[LineError] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    overflows: bool = False
    lines: int = 0
    keeps: bool = False
    doubts: list[LineError] = field(default_factory=list)
    chooses: bool = False


@dataclass(frozen=True)
class Planner:
    """Plans blocks; can be sent to another process, with what it has learned of models so far.

    rates: what is known of the models' times; refused: models that lines may not name, with the
    reason; unidentified: models whose weights nobody can tell now, and why: their lines are left
    out; carries: whether what fills no call may be rendered with that of other blocks.
    """

    table: ModelTable
    options: PlanOptions
    fingerprints: dict[str, str]
    intake: Intake
    rates: Rates = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unidentified: dict[str, FatalError] = field(default_factory=dict)
    carries: bool = False

    @cached_property
    def grouper(self) -> Grouper:
        return Grouper(self.table, self.rates)

    @cached_property
    def _resolver(self) -> Resolver:
        return Resolver(self.table, self.options, self.fingerprints, self.intake)

    def __getstate__(self) -> dict[str, object]:
        """Without what it remembers of lines."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def plan(self, block: Block, exclude: frozenset[int] = frozenset()) -> PlannedBlock:
        """Plan one block without the lines whose numbers are excluded."""
        self._resolver.forget()
        plain = parse_plain(block.lines)
        found = self._find_at_once(block.first, plain) if plain and not exclude else None
        if found is None:
            lines: _Numbered = enumerate(plain.lines, block.first) if plain else parse_lines(block)
            found = self._find(lines, exclude)
        if found.overflows:
            return PlannedBlock(images=_count(block, self.options))
        errors = block.errors + found.errors
        if found.missing:
            return PlannedBlock(errors=errors, missing=frozenset(found.missing))
        grouper = self.grouper
        groups, left = grouper.gather(found.requests, found.calls), list[Group]()
        if self.carries and not found.chooses:  # an image's candidates are looked for in one shard
            divided = [grouper.divide(group) for group in groups]
            groups = [full for full, _ in divided if full[1]]
            left = [rest for _, rest in divided if rest[1]]
        else:
            groups = [fitted for group in groups for fitted in grouper.fit(group)]
        planned = _planned(in_order(groups), in_order(left), grouper)
        return replace(
            planned, raw=block.gzipped(), errors=errors, lines=found.lines, keeps=found.keeps,
            doubts=found.doubts, chooses=found.chooses,
            identities=np.array(found.identities, np.uint64),
            numbers=np.array(found.numbers, np.int64),
        )  # fmt: skip

    def _find_at_once(self, first: int, plain: PlainLines) -> _Found | None:
        """What plain lines stand for, the first of them line `first`; None if one of them is
        refused, or is to be several images."""
        if self.options.n > 1 or self.options.rule:
            return None
        try:
            requests, calls, identities = self._resolver.resolve_all(first - 1, plain)
        except (InvalidRequest, UnknownFingerprint):
            return None
        numbers = range(first, first + len(requests))
        doubts = [
            LineError(number, request.custom_id, *doubt)
            for number, request in zip(numbers, requests, strict=True)
            if (doubt := _doubt(request))
        ]
        keeps = any(line.keep for line in plain.lines)
        return _Found(
            requests, calls, identities, numbers, lines=len(requests), keeps=keeps, doubts=doubts
        )

    def _find(self, lines: _Numbered, exclude: frozenset[int]) -> _Found:
        """What lines stand for, each looked at alone, but those whose numbers are excluded."""
        resolver, n, rule = self._resolver, self.options.n, self.options.rule
        found, images = _Found(), 0
        identities, numbers = list[int](), list[int]()
        for number, line in lines:
            if number in exclude:
                continue
            if isinstance(line, list):
                found.errors += line
                continue
            name = line.custom_id or ""
            requests: Sequence[Request]
            try:
                if line.has_recipe or n > 1 or rule:
                    requests = _expand(number, line, resolver)
                    images += len(requests)
                    if images > SHARD_LINES and found.lines:
                        return _Found(overflows=True)
                    identities += [resolver.identity(one) for one in requests]
                    numbers += [number] * len(requests)
                else:
                    hashed = resolver.hash_name(name.encode()) if name else None
                    request = resolver.resolve(
                        number - 1, line.task, line.body, name, 0, line.slots or 0, hashed
                    )
                    requests = (request,)
                    identities.append(hashed or resolver.identity(request))
                    numbers.append(number)
            except InvalidRequest as error:
                found.errors.append(LineError(number, name, error.field, error.reason))
            except UnknownFingerprint as unknown:
                if unknown.model in self.unidentified:
                    continue
                if reason := self._refusal(unknown.model):
                    found.errors.append(LineError(number, name, "model", reason))
                else:
                    found.missing.add(unknown.model)
            else:
                found.requests += requests
                found.lines += 1
                found.keeps |= bool(line.keep)
                for one in requests:
                    if doubt := _doubt(one):
                        found.doubts.append(LineError(number, name, *doubt))
                        break
        found.identities, found.numbers = identities, numbers
        found.calls = [self.grouper.call_key(one.key) for one in found.requests]
        found.chooses = any(one.candidate for one in found.requests)
        return found

    def learn(self, routes: Collection[str]) -> None:
        """Find models' fingerprints out, or why no line may name one, or why nobody can tell.

        Those that no line may name any more are left out.
        """
        listed = [route for route in routes if self._is_listed(route)]
        others = [route for route in routes if not self._is_listed(route)]
        for route, found in find_digests(self.table, [*listed, *others[: self._room]]).items():
            match found:
                case str(digest):
                    self.fingerprints[route] = digest
                case NoSuchWeights() as error if not self._is_listed(route):
                    self.refused[route] = error.message  # whoever wrote the line chose it
                case FatalError() as error:
                    self.unidentified[route] = error
                case error:
                    raise error

    def _refusal(self, route: str) -> str | None:
        if (reason := self.refused.get(route)) or self._room > 0 or self._is_listed(route):
            return reason
        return f"the manifest names more than {MAX_UNLISTED} models that models.toml does not have"

    @property
    def _room(self) -> int:
        """How many more models may be named that the table lacks."""
        met = (*self.refused, *self.unidentified, *self.fingerprints)
        return MAX_UNLISTED - sum(not self._is_listed(known) for known in met)

    def _is_listed(self, route: str) -> bool:
        model = route if route in self.table.models else route.rpartition(":")[0]
        return model in self.table.models or route == self.options.model


def _expand(number: int, line: Line, resolver: Resolver) -> list[Request]:
    """All requests of a line, or none if one of them is refused.

    Raises: as Resolver.resolve.
    """
    recipe = line.body if isinstance(line.body, Recipe) else as_recipe(line.body)
    options, slots = resolver.options, line.slots or 0
    found = [
        resolver.resolve(number - 1, line.task, image.body, image.custom_id, image.number, slots)
        for image in recipe.images(line.custom_id or "", options.seed, options.n, options.rule)
    ]
    if rule := recipe.rule or options.rule:
        return [one for first in found for one in resolver.candidates(first, rule)]
    return found


def _doubt(request: Request) -> tuple[str, str] | None:
    """The field, and what there is about it, of a request that may not be meant; None for most."""
    prompt, negative = request.prompt, request.negative_prompt
    if not prompt or prompt.isspace():
        return "prompt", "is empty: the model gets no text"
    if "{{" in prompt and (place := PLACEHOLDER.search(prompt)):
        return "prompt", f"nothing fills {place[0]}: the model gets it as it stands"
    if "{{" in negative and (place := PLACEHOLDER.search(negative)):
        return "negative_prompt", f"nothing fills {place[0]}: the model gets it as it stands"
    return None


def _count(block: Block, options: PlanOptions) -> dict[int, int]:
    """The images of each line; 1 of one that is refused."""
    counts: dict[int, int] = {}
    for number, line in parse_lines(block):
        if isinstance(line, list):
            continue
        try:
            recipe = line.body if isinstance(line.body, Recipe) else as_recipe(line.body)
            count = recipe.count(options.n, options.rule)
        except InvalidRequest:
            count = 1
        counts[number] = count if count <= MAX_IMAGES else 1
    return counts


def _planned(groups: list[Group], left: list[Group], grouper: Grouper) -> PlannedBlock:
    """A shard of these requests. left: those that are in no call of it."""
    rows = rows_of([*groups, *left])
    return PlannedBlock(
        shard=encode_shard(rows) if rows else b"",
        calls=grouper.calls(groups),
        tallies=tally(groups),
        left=left,
        jobs=_jobs(rows),
    )


def plan_carried(groups: list[Group], homes: frozenset[int], grouper: Grouper) -> PlannedBlock:
    """A shard of what earlier ones, numbered `homes`, left over."""
    planned = _planned(groups, [], grouper)
    return replace(planned, carried=len(planned.jobs), homes=homes)


def rows_of(groups: Sequence[Group]) -> list[Request]:
    return list(chain.from_iterable(requests for _, requests in groups))


def _jobs(rows: list[Request]) -> Hashes:
    return np.frombuffer(bytes.fromhex("".join(row.job_id[:16] for row in rows)), np.uint64)
