"""Several Ray hosts on one machine: addresses, files, links and processes of their own.

Ray nodes at loopback addresses of one machine share its files and talk faster than any network, so a path that is not
shared works, and communication costs nothing. Here every host is a set of Linux namespaces, joined by a bridge, with a
real ``ray start`` node in it. Root on Linux, from a checkout; nothing of it shows outside while it runs.
"""

from cluster.hosts.fleet import Hosts
from cluster.hosts.links import Counters, Link
from cluster.hosts.making import hosts
from cluster.hosts.requirements import missing
from cluster.hosts.settings import HostSettings

__all__ = ["Counters", "HostSettings", "Hosts", "Link", "hosts", "missing"]
