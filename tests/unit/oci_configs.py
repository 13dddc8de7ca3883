"""Documents as podman and docker write them: the fields, and how each of them spells what it leaves out."""

from __future__ import annotations

from typing import Any

CAPS = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]


def podman() -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1, 10]},
            "args": ["sleep", "1"],
            "env": ["PATH=/bin", "TERM=xterm", "EMPTY="],
            "cwd": "/",
            "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1024},
                {"type": "RLIMIT_NPROC", "hard": 2**64 - 1, "soft": 2**64 - 1},
            ],
            "noNewPrivileges": False,
            "oomScoreAdj": 0,
        },
        "root": {"path": "/var/lib/containers/storage/overlay/x/merged"},
        "hostname": "web",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rprivate"]},
            {
                "destination": "/owned",
                "type": "bind",
                "source": "/srv",
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            },
        ],
        "hooks": {"poststop": [{"path": "/usr/bin/podman", "args": ["podman", "x"], "env": ["A=b"], "timeout": 5}]},
        "annotations": {"org.opencontainers.image.stopSignal": "15", "io.podman.annotations.init": "FALSE"},
        "linux": {
            "sysctl": {"net.ipv4.ping_group_range": "0 0", "fs.mqueue.msg_max": "10", "kernel.shmmax": "1"},
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 10, "minor": -1, "access": "rw"},
                ],
                "memory": {"limit": 512 << 20, "swap": -1},
                "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1"},
                "pids": {"limit": 2048},
                "blockIO": {
                    "weight": 100,
                    "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                },
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 30}],
                "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 3}]},
                "rdma": {"mlx5_0": {"hcaHandles": 2}},
                "unified": {"memory.high": "1000"},
            },
            "cgroupsPath": "/machine/libpod-1",
            "namespaces": [
                {"type": "pid"},
                {"type": "network", "path": "/run/netns/cni-1"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
                {"type": "user"},
            ],
            "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            "gidMappings": [
                {"containerID": 0, "hostID": 100000, "size": 1000},
                {"containerID": 1000, "hostID": 1000, "size": 1},
            ],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["personality"],
                        "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 0, "value": 131072, "op": "SCMP_CMP_EQ"}],
                    },
                    {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                ],
            },
            "rootfsPropagation": "slave",
            "maskedPaths": ["/proc/acpi", "/proc/kcore"],
            "readonlyPaths": ["/proc/bus"],
        },
    }


def docker() -> dict[str, Any]:
    document = podman()
    document["ociVersion"] = "1.2.0+dev"
    document["domainname"] = "example.org"
    document["windows"] = {"layerFolders": None}
    document["process"]["consoleSize"] = {"height": 24, "width": 80}
    document["process"]["apparmorProfile"] = "docker-default"
    document["process"]["rlimits"] = None
    document["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 4}
    document["process"]["scheduler"] = {"policy": "SCHED_OTHER", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    document["process"]["execCPUAffinity"] = {"initial": "0", "final": "0-1,3"}
    document["hooks"] = {"prestart": [{"path": "/proc/1/exe", "args": ["libnetwork-setkey"]}]}
    linux = document["linux"]
    linux["resources"]["blockIO"] = {"weight": 0}
    linux["resources"]["memory"] = {"disableOOMKiller": False, "swappiness": 60}
    linux["namespaces"].append({"type": "time"})
    linux["timeOffsets"] = {"monotonic": {"secs": -5, "nanosecs": 7}, "boottime": {}}
    linux["devices"][0]["fileMode"] = 0o20666
    linux["personality"] = {"domain": "LINUX32"}
    linux["intelRdt"] = {"closID": "gold", "l3CacheSchema": "L3:0=f"}
    linux["mountLabel"] = "x"
    return document
