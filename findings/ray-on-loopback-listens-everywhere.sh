#!/usr/bin/env bash
# Ray 2.60.0, started for one machine and told that its node's address is 127.0.0.1, takes the address of the network
# card in its place: its servers then listen on every interface. (`services.resolve_ip_for_localhost` does so: other
# machines could not reach a node by 127.0.0.1. A Ray of one machine has no others.) What keeps it to this machine is
# a variable for Windows and macOS, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, set before the import.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat >"$folder/listen.py" <<'PYTHON'
import os, pathlib, sys

import ray

quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": 40}
ray.init("local", _node_ip_address="127.0.0.1", num_cpus=1, **quiet)
parents = {}
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
family = {os.getpid()}
while more := {child for child, parent in parents.items() if parent in family} - family:
    family |= more
sockets = {os.readlink(link) for pid in family for link in pathlib.Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}")]
open_to = {words[1].split(":")[0] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in sockets}
everywhere = any(set(address) == {"0"} for address in open_to)
print(f"ray {ray.__version__}: {'every interface' if everywhere else 'the loopback alone'} ({', '.join(sorted(open_to))})")
ray.shutdown()
sys.exit(not everywhere)
PYTHON
export RAY_USAGE_STATS_ENABLED=0 HOME=$folder
echo "as asked for 127.0.0.1:"
"$folder/venv/bin/python" "$folder/listen.py" # fails once it listens there alone
echo "with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0:"
! RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 "$folder/venv/bin/python" "$folder/listen.py"
