def test_a(docker):
    print(docker("info").out)
    print(docker.run("--rm", "--", "cat", "/proc/self/cgroup"))
    print(docker.run("-d", "--name", "two", "--memory", "67108864", "--", "sleep", "100"))
    for w in (("ps",), ("top", "two"), ("stats", "--no-stream", "two"), ("exec", "-t", "two", "tty"), ("exec", "two", "cat", "/proc/self/cgroup"), ("pause", "two"), ("ps",), ("unpause", "two"), ("exec", "two", "nosuch"), ("run", "--rm", "localhost/busybox", "nosuch"),  ("run", "--rm", "localhost/busybox", "/etc"), ("update", "--memory", "32m", "--memory-swap", "32m", "two"), ("exec", "two", "ip", "a"), ("kill", "two"), ("ps", "-a")):
        print(docker(*w))
    import subprocess
    print(subprocess.run(["find", str(docker.nest.inside("run")), "-maxdepth", "5"], capture_output=True, text=True).stdout)
    print(subprocess.run(["find", str(docker.nest.inside(docker.store + "/exec")), "-maxdepth", "4"], capture_output=True, text=True).stdout)
    print(docker.told())
