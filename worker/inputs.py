"""Input images of requests, loaded in threads while the device renders the batch before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from PIL.Image import Image

from jobs.errors import ImagemillError, InvalidRequest
from jobs.inputs.images import InputPolicy, load_input, open_image
from jobs.inputs.stores import is_store_uri, read_store_uri
from jobs.output.storage import Storage
from jobs.requests import Request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with its input images, upright and RGB, or the reason why they cannot be had.

    seconds: what loading took.
    """

    request: Request
    images: tuple[Image, ...] = ()
    controls: tuple[Image, ...] = ()
    problem: InvalidRequest | None = None
    seconds: float = 0.0


@dataclass
class Loading:
    """The inputs of one batch, under way once they were started."""

    requests: list[Request]
    _start: Callable[[Request], Callable[[], Prepared]]
    _waits: list[Callable[[], Prepared]] = field(default_factory=list)

    def start(self) -> None:
        """Begin, unless that was done before."""
        self._waits = self._waits or [self._start(request) for request in self.requests]

    def wait(self) -> list[Prepared]:
        """The requests with their inputs.

        Raises:
            TransientError, FatalError: the storage of the run cannot be read.
        """
        self.start()
        return [wait() for wait in self._waits]


@dataclass(frozen=True)
class Loader:
    """Loads inputs. storage: where those lie that requests name by hash; stores: allowed places."""

    executor: Executor
    storage: Storage
    policy: InputPolicy
    stores: frozenset[str]

    def load(self, requests: list[Request]) -> Loading:
        """The requests of one batch."""
        return Loading(requests, self._start)

    def ahead(self, batches: Iterable[list[Request]], eager: bool = True) -> Iterator[Loading]:
        """Batches with their inputs. If eager, those of the next one are under way as well."""
        under_way: deque[Loading] = deque()
        for batch in batches:
            under_way.append(Loading(batch, self._start))
            if eager:
                under_way[-1].start()
            if len(under_way) > eager:
                yield under_way.popleft()
        yield from under_way

    def _start(self, request: Request) -> Callable[[], Prepared]:
        if not request.images and not request.control_images:
            return lambda: Prepared(request)
        return self.executor.submit(self._load, request).result

    def _load(self, request: Request) -> Prepared:
        started = time.perf_counter()
        try:
            images = tuple(self._open(one, "image") for one in request.images)
            controls = tuple(self._open(one, "control_images") for one in request.control_images)
        except InvalidRequest as problem:
            return Prepared(request, problem=problem)
        except ImagemillError:
            raise  # the storage of the run
        except Exception as error:  # whatever somebody else's bytes make a decoder do
            reason = f"could not be read: {type(error).__name__}"
            return Prepared(request, problem=InvalidRequest("image", reason, "input_not_an_image"))
        return Prepared(request, images, controls, None, time.perf_counter() - started)

    def _open(self, reference: str, field: str) -> Image:
        if is_store_uri(reference):
            data = read_store_uri(reference, self.stores, self.policy, field)
        else:
            data = load_input(reference, self.policy, self.storage, field)
        return open_image(data, field)
