"""Which addresses belong to the public internet: our own list, as Python's is as old as Python.

From IANA's registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890 and those that
followed, read in November 2026), of multicast (RFC 5771, RFC 4291), of addresses that were
withdrawn, and of clouds that answer metadata on an address of their own.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_SPECIAL = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network"
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocols; 192.0.0.192: metadata of Oracle's cloud
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "100.100.100.200/32",  # metadata of Alibaba's cloud
        "168.63.129.16/32",  # metadata of Azure
    )
)
# All that is public in IPv6 lies in here …
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# … but for these.
_SPECIAL_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocols, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # 6bone, withdrawn
        "3fff::/20",  # documentation
    )
)


def is_public(text: str) -> bool:
    """Whether an address, without a zone or with one, may be connected to for a stranger."""
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL)
    return _is_public_v6(address)


def _is_public_v6(address: IPv6Address) -> bool:
    return address in _GLOBAL_UNICAST and not any(address in network for network in _SPECIAL_V6)
