"""Seals: what lies in Redis was written by whoever knows the installation's secret.

For brokers that others can write to as well. Without a secret there are no seals, and all passes.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Seal:
    """Signs texts with HMAC-SHA256."""

    secret: bytes

    def __repr__(self) -> str:
        # Without the secret, but of its own for each: kombu tells connection pools apart by it.
        return f"Seal({self.sign('repr')[:8]})"

    def sign(self, *texts: str) -> str:
        """The signature of some texts, hexadecimal; empty without a secret."""
        if not self.secret:
            return ""
        # Each with its length, so that no text can run over into the next.
        content = "".join(f"{len(text)}:{text}" for text in texts)
        return hmac.digest(self.secret, content.encode("utf-8", "surrogatepass"), "sha256").hex()

    def fits(self, signature: str, *texts: str) -> bool:
        """Whether the texts were signed with our secret; true without one."""
        # Of bytes: of texts it takes ASCII only, and a signature is what somebody else wrote.
        expected = self.sign(*texts).encode()
        return not self.secret or hmac.compare_digest(
            expected, signature.encode("utf-8", "surrogatepass")
        )


NO_SEAL = Seal(b"")


def make_seal(settings: Settings) -> Seal:
    """The installation's."""
    secret = settings.broker_secret
    return Seal(secret.get_secret_value().encode()) if secret else NO_SEAL
