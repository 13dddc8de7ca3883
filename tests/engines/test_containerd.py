def test_a(containerd):
    print(containerd("image", "ls").out)
    print(containerd.run("one", "--rm", "--", "cat", "/proc/self/cgroup"))
    print(containerd.run("two", "-d", "--memory-limit", "67108864", "--", "sleep", "100"))
    for w in (("task", "ls"), ("task", "ps", "two"), ("task", "metrics", "two"), ("task", "exec", "--exec-id", "e", "two", "cat", "/proc/self/cgroup"), ("task", "pause", "two"), ("task", "ls"), ("task", "resume", "two"), ("task", "kill", "-s", "9", "two")):
        print(containerd(*w))
    print(containerd.nest.processes())
    import subprocess
    print(subprocess.run(["find", str(containerd.nest.inside("run")), "-maxdepth", "5"], capture_output=True, text=True).stdout)
    print(containerd.told())
