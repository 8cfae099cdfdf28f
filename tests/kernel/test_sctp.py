"""A machine that cannot match SCTP ports: the rules for them are left out, and said to be; all others stand and work.

The lack is real: the match's own file is taken away from iptables (in the mount namespace of the tests), so that the
rule that is tried fails, and any other like it would. nftables reads ports without it.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.kernel import netns
from tests.kernel.test_cli_real import ENV, nsnet

TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: mixed}, dns: {enabled: false}, networking: {kubeProxyMode: %s}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, spec: {nodeName: node1, containers: [
  {name: c, ports: [{containerPort: 80}, {containerPort: 9, hostPort: 9, protocol: SCTP}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: a}, ports: [
  {name: web, port: 80, nodePort: 30080}, {name: other, port: 9, protocol: SCTP, nodePort: 30009}]}}
"""
SAID = "this kernel has no sctp match (CONFIG_NETFILTER_XT_MATCH_SCTP)"


@pytest.fixture
def _without_the_match() -> Iterator[None]:
    files = sorted(Path("/usr/lib").glob("*/xtables/libxt_sctp.so"))
    if not files:
        pytest.skip("iptables' libxt_sctp.so is not where Debian has it: it cannot be taken away")
    for file in files:
        subprocess.run(["mount", "--bind", "/dev/null", str(file)], check=True)
    yield
    for file in files:
        subprocess.run(["umount", str(file)], check=True)


def rules(where: str, *command: str) -> str:
    with netns.inside(f"mixed.{where}"):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("_without_the_match")
@pytest.mark.parametrize("build", ["nft", "legacy"])
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_rules_for_sctp_are_left_out_and_the_others_stand(
    mode: str, build: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build == "legacy":
        request.getfixturevalue("older_build")
        monkeypatch.setitem(ENV, "PATH", os.environ["PATH"])
    path = tmp_path / "mixed.yaml"
    path.write_text(TOPOLOGY % mode)
    try:
        said = nsnet("up", str(path), code=0)
        assert f"cluster/mixed: {SAID}: rules for SCTP ports are left out\n" in said.stderr
        saved = rules("node.node1", "iptables-save") + rules("fabric.router", "iptables-save")
        assert "sctp" not in saved
        assert saved.count("-d 198.51.100.") > 1
        own = f"port 9/SCTP: {SAID}: there are no rules for it" if mode == "iptables" else "stand-ins do not speak SCTP"
        assert own in said.stderr
        if mode == "nftables":
            assert ". sctp . 9 " in rules("node.node1", "nft", "list", "map", "ip", "kube-proxy", "service-ips")
        nsnet("exec", "host/client", "--", "curl", "-sSfm3", "http://172.18.0.3:30080/hostname")
        assert nsnet("status").stdout.count("drift       none") == 1
    finally:
        nsnet("down", "mixed")
