"""Input images of requests, loaded in threads while the device renders the batch before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from functools import cache

from PIL.Image import Image

from jobs.errors import ImagemillError, InvalidRequest
from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy, check_image, check_mask, read_input
from jobs.inputs.stores import is_store_uri, read_store_uri
from jobs.output.storage import Storage
from jobs.requests import Request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with its input images, upright and RGB, or the reason why they cannot be had.

    mask: mode "L", of the output's size, white where the image is to be repainted; or None.
    seconds: what loading the slowest of them took.
    """

    request: Request
    images: tuple[Image, ...] = ()
    controls: tuple[Image, ...] = ()
    mask: Image | None = None
    problem: InvalidRequest | None = None
    seconds: float = 0.0


@dataclass
class Loading:
    """The inputs of one batch, under way once they were started."""

    requests: list[Request]
    _begin: Callable[[list[Request]], list[Inputs]]
    _under_way: list[Inputs] = field(default_factory=list)

    def start(self) -> None:
        """Begin, unless that was done before."""
        self._under_way = self._under_way or self._begin(self.requests)

    def arrives(self, seconds: float) -> bool:
        """Whether all inputs are there, or known not to be had, within so many seconds."""
        self.start()
        inputs = [future for one in self._under_way for future in one.all]
        return not wait(inputs, seconds).not_done

    def wait(self) -> list[Prepared]:
        """The requests with their inputs.

        Raises:
            TransientError, FatalError: the storage of the run cannot be read.
        """
        self.start()
        return [_prepared(*pair) for pair in zip(self.requests, self._under_way, strict=True)]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One input's pixels, and its own width and height; `seconds` is what they took."""

    image: Image
    size: tuple[int, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """One input's bytes, unchecked; `seconds` is what they took."""

    data: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one request. Requests of a batch share those that they have in common."""

    images: list[Future[Loaded]]
    controls: list[Future[Loaded]]
    masks: list[Future[Loaded]]  # one or none

    @property
    def all(self) -> list[Future[Loaded]]:
        """Every one of them."""
        return [*self.images, *self.controls, *self.masks]


@dataclass(frozen=True)
class Loader:
    """Loads inputs: each once a batch, and scaled to what the model takes, whoever asks for it.

    storage: where those lie that requests name by hash; stores: allowed places; fitted: whether the
    model takes the images of edits at the output's size, which control images always have.
    """

    executor: Executor
    storage: Storage
    policy: InputPolicy
    stores: frozenset[str]
    decoding: Decoding
    fitted: Callable[[], bool]
    _fetched: dict[tuple[str, str], Future[Fetched]] = field(default_factory=dict)

    def fetch(self, requests: list[Request]) -> None:
        """Have the inputs of requests read, so that whoever loads them finds their bytes here.

        They are not decoded, which only those do whose turn it is, and who are watched if need be.
        """
        named = {
            *((reference, "image") for one in requests for reference in one.inputs),
            *(
                (reference, "control_images")
                for one in requests
                for reference in one.control_images
            ),
            *((one.mask, "mask_image") for one in requests if one.mask),
        }
        self._fetched.update((one, self.executor.submit(self._fetch, *one)) for one in named)

    def load(self, requests: list[Request]) -> Loading:
        """The requests of one batch."""
        return Loading(requests, self._begin)

    def ahead(self, batches: Iterable[list[Request]], eager: bool = True) -> Iterator[Loading]:
        """Batches with their inputs. If eager, those of the next one are under way as well."""
        under_way: deque[Loading] = deque()
        for batch in batches:
            under_way.append(self.load(batch))
            if eager:
                under_way[-1].start()
            if len(under_way) > eager:
                yield under_way.popleft()
        yield from under_way

    def _begin(self, requests: list[Request]) -> list[Inputs]:
        @cache
        def load(reference: str, field: str, size: tuple[int, int] | None) -> Future[Loaded]:
            return self.executor.submit(self._load, reference, field, size)

        def begin(request: Request) -> Inputs:
            size = request.key.width, request.key.height
            images = size if request.images and self.fitted() else None
            return Inputs(
                [load(one, "image", images) for one in request.inputs],
                [load(one, "control_images", size) for one in request.control_images],
                [load(request.mask, "mask_image", size)] if request.mask else [],
            )

        return [begin(request) for request in requests]

    def _load(self, reference: str, field: str, size: tuple[int, int] | None) -> Loaded:
        # What was fetched ahead is in a thread already, or done: it does not wait for ours.
        ahead = self._fetched.pop((reference, field), None)
        try:
            fetched = ahead.result() if ahead else self._fetch(reference, field)
            started = time.perf_counter()
            check_image(fetched.data, self.policy, field)
            if field == "mask_image" and size:
                found = self.decoding.open_mask(fetched.data, field, size)
            else:
                found = self.decoding.open(fetched.data, field, size)
        except ImagemillError:
            raise  # of the input, or of the storage of the run
        except Exception as error:  # whatever somebody else's bytes make a decoder do
            reason = f"could not be read: {type(error).__name__}"
            raise InvalidRequest(field, reason, "input_not_an_image") from error
        return Loaded(*found, fetched.seconds + time.perf_counter() - started)

    def _fetch(self, reference: str, field: str) -> Fetched:
        started = time.perf_counter()
        if is_store_uri(reference):
            data = read_store_uri(reference, self.stores, self.policy, field)
        else:
            data = read_input(reference, self.policy, self.storage, field)
        return Fetched(data, time.perf_counter() - started)


def _prepared(request: Request, inputs: Inputs) -> Prepared:
    try:
        images, controls, masks = (
            [one.result() for one in kind]
            for kind in (inputs.images, inputs.controls, inputs.masks)
        )
        for mask in masks:
            check_mask(mask.size, images[0].size)
    except InvalidRequest as problem:
        return Prepared(request, problem=problem)
    return Prepared(
        request,
        tuple(one.image for one in images),
        tuple(one.image for one in controls),
        masks[0].image if masks else None,
        seconds=max((one.seconds for one in (*images, *controls, *masks)), default=0.0),
    )
