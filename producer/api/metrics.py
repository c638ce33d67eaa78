"""/metrics: the installation as Prometheus reads it."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import SecretStr

from producer.api.admission import Access, check_site
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of
from producer.api.wire.threads import in_thread

_bearer = HTTPBearer(auto_error=False)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Metrics:
    """What is told, and the token (IMAGEMILL_METRICS_TOKEN) that whoever asks must have."""

    registry: CollectorRegistry
    token: SecretStr | None

    def check(self, given: str | None, is_open: bool) -> None:
        """Admit whoever asks. Keys of teams are not enough: this tells of all teams together.

        is_open: there are no keys, so that everybody may come in anyway.

        Raises:
            ApiError: 401.
        """
        if self.token is None:
            if not is_open:
                hint = "metrics have a token of their own: set IMAGEMILL_METRICS_TOKEN"
                raise ApiError(401, "no_token", hint)
        elif not hmac.compare_digest(
            (given or "").encode("utf-8", "surrogateescape"), self.token.get_secret_value().encode()
        ):
            raise ApiError(401, "bad_token", "send Authorization: Bearer IMAGEMILL_METRICS_TOKEN")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics, in Prometheus' text format."""
    access, told = part_of(request, Access), part_of(request, Metrics)
    if access.is_open:
        check_site(request, access.public_host)
    credentials = await _bearer(request)
    told.check(credentials.credentials if credentials else None, access.is_open)
    body = await in_thread(generate_latest, told.registry)
    return Response(body, media_type=CONTENT_TYPE_PLAIN_0_0_4)
