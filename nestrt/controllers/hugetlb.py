"""hugetlb: huge pages by page size. Documentation/admin-guide/cgroup-v1/hugetlb.rst, cgroup-v2.rst."""

from __future__ import annotations

from nestrt.controllers.base import Controller, File, Setting, asked, limit, number, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources

V1 = (
    limit("hugetlb.*.limit_in_bytes", "max", "bytes", "min"),
    limit("hugetlb.*.rsvd.limit_in_bytes", "reserved_max", "bytes", "min"),
    File("hugetlb.*.usage_in_bytes", "current", "bytes"),
    File("hugetlb.*.rsvd.usage_in_bytes", "reserved_current", "bytes"),
    own("hugetlb.*.max_usage_in_bytes", "peak", "bytes"),
    own("hugetlb.*.rsvd.max_usage_in_bytes", "reserved_peak", "bytes"),
    own("hugetlb.*.failcnt", "failcnt", "count"),
    own("hugetlb.*.rsvd.failcnt", "reserved_failcnt", "count"),
    File("hugetlb.*.numa_stat", "numa_stat", "keys"),
)
V2 = (
    limit("hugetlb.*.max", "max", "bytes", "min"),
    limit("hugetlb.*.rsvd.max", "reserved_max", "bytes", "min"),
    File("hugetlb.*.current", "current", "bytes"),
    File("hugetlb.*.rsvd.current", "reserved_current", "bytes"),
    File("hugetlb.*.events", "events", "keys"),
    File("hugetlb.*.events.local", "events_local", "keys"),
    File("hugetlb.*.numa_stat", "numa_stat", "keys"),
)


def settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """The limit at fault and, since Linux 5.7, the one at reservation, which is an error and no SIGBUS."""
    word = "limit_in_bytes" if version == 1 else "max"
    found: list[Setting] = []
    for page, size in limits.hugetlb:
        found.append(Setting(f"hugetlb.{page}.rsvd.{word}", number(size, version), optional=True))
        found.append(Setting(f"hugetlb.{page}.{word}", number(size, version)))
    return tuple(found)


def resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """linux.resources.hugepageLimits, at reservation as well, as runc does since 1.2; 0 allows none.

    Raises InputError for what is no page size: it would name another file.
    """
    found: list[Setting] = []
    if resources.hugepages:
        from nestrt.level.limits import hugetlb_size

        word = "limit_in_bytes" if version == 1 else "max"
        for page, size in resources.hugepages:
            name, field = f"hugetlb.{hugetlb_size(page)}", f"hugepageLimits[{page}]"
            found.append(asked(f"{name}.rsvd.{word}", size, field, optional=True))
            found.append(asked(f"{name}.{word}", size, field))
    return tuple(found)


CONTROLLER = Controller(
    "hugetlb", "hugetlb", V1, V2, settings, "divide_memory", ("current", "max"), resources=resources
)
