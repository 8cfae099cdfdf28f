"""The command as a person meets it: exit code, stdout and stderr, whole; and the pure parts behind it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource

from nsnet import model
from nsnet.cli import describe, files, kinds
from nsnet.cli import main as cli
from nsnet.cli.columns import Look, cells, header, human
from nsnet.cli.context import Running
from nsnet.cli.durations import DURATION
from nsnet.cli.explain import flows
from nsnet.cli.output import table
from nsnet.cli.redact import LAST_APPLIED
from nsnet.cli.selectors import selector
from nsnet.cli.sentences import sentence
from nsnet.cli.target import target
from nsnet.errors import InputError, NotReachedError, NsnetError
from nsnet.model import from_doc

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Said:
    """What a run of the command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def nsnet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command inside this process, on a machine without clusters, as root unless told otherwise."""
    monkeypatch.setattr("nsnet.names.NETNS", tmp_path / "netns")
    monkeypatch.setattr("nsnet.names.STATE", tmp_path / "state")
    monkeypatch.setattr("nsnet.names.RUN", tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def run(words: str, *, root: bool = True) -> Said:
        monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
        code = cli.run(words.split())
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


# --- the whole process ------------------------------------------------------------------------------------------------


def process(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nsnet", *words], capture_output=True, text=True, cwd=ROOT, check=False, **settings
    )


def test_help_is_one_line_per_verb() -> None:
    done = process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: nsnet [OPTIONS] [COMMAND] [ARGS]...\n")
    listed = re.findall(r"^  ([a-z]+) {2,}\S", done.stdout, re.MULTILINE)
    assert listed == [name for name in cli.VERBS if name not in cli.HIDDEN]


def test_help_loads_nothing_it_does_not_need() -> None:
    """The promise is 0.15 s for the whole process; what makes it so is what is not imported."""
    code = "import sys; from nsnet.cli.main import run; run(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stderr.split())
    assert not {"yaml", "rich", "scapy", "pyroute2", "msgspec", "sqlite3", "ctypes", "asyncio"} & loaded
    assert {name for name in loaded if name.startswith("nsnet.")} == {
        "nsnet.cli", "nsnet.cli.main", "nsnet.cli.words", "nsnet.errors", "nsnet.garbage",
    }  # fmt: skip


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`nsnet … | head -1`: quiet, and the exit code of a process that SIGPIPE ended."""
    script = f'{sys.executable} -m nsnet --help | :; echo "${{PIPESTATUS[0]}}"'
    slow = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=slow, check=True)
    assert done.stdout.strip() in {"0", "141"}  # 0 where the help was written before the reader had gone
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("raised", "code", "err"),
    [
        ("KeyboardInterrupt()", 130, "error: interrupted\n"),
        ("InputError('wrong', 'mend it')", 2, "error: wrong\nhint: mend it\n"),
    ],
)
def test_an_end_is_said_also_where_the_reader_has_gone(raised: str, code: int, err: str) -> None:
    """Ctrl-C on `nsnet … | less`: what was printed is still held back, and can no longer be written."""
    reader, writer = os.pipe()
    os.close(reader)
    verb = f"def verb(args): out('held back'); raise {raised}"
    lines = ("from nsnet.cli import main", "from nsnet.cli.output import out", "from nsnet.errors import *", verb)
    script = "\n".join((*lines, "main._invoke = verb", "main.main([])"))
    held = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=held,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, err)


def test_a_full_disk_under_stdout_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nsnet", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 5
    assert done.stderr.startswith("error: cannot write: [Errno 28] No space left on device\nhint: ")


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    """The command waits for a pipe that nobody writes; then comes the interrupt."""
    fifo = tmp_path / "topo.yaml"
    os.mkfifo(fifo)
    words = [sys.executable, "-m", "nsnet", "validate", str(fifo)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        writer = _writer(fifo, running)
        running.send_signal(signal.SIGINT)
        os.close(writer)  # a signal just before the read would otherwise be seen only after it
        said = running.communicate(timeout=20)[1]
    assert (running.returncode, said) == (130, "error: interrupted\n")


def _writer(fifo: Path, reader: subprocess.Popen[str]) -> int:
    """The writing end, once the process reads; a FIFO has no other event for that."""
    while reader.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.005)
    raise AssertionError(reader.communicate()[1])


# --- wrong words ------------------------------------------------------------------------------------------------------

WRONG = [
    ("nope", 2, 'there is no verb "nope"', "`nsnet --help` shows how it is used"),
    ("appply", 2, 'there is no verb "appply" (did you mean apply?)', "`nsnet --help` shows how it is used"),
    ("up", 2, "Missing argument 'FILE…'", "`nsnet up --help` shows how it is used"),
    ("up --tmeout 3 x", 2, "No such option '--tmeout'. Did you mean '--timeout'?",
     "`nsnet up --help` shows how it is used"),
    ("up x --timeout soon", 2, 'Invalid value for \'--timeout\': "soon" is no length of time: 60s, 2m, 1m30s',
     "`nsnet up --help` shows how it is used"),
    ("up nope.yaml", 2, "nope.yaml: No such file or directory", ""),
    (f"validate {'x' * 256}", 2, f"{'x' * 256}: File name too long", ""),
    ("validate - -", 2, "- is given twice", "standard input can be read once"),
    ("get", 2, "Missing argument 'KIND[/NAME]'", "`nsnet get --help` shows how it is used"),
    ("get po", 2, "no cluster is up", "sudo nsnet up topologies/quickstart.yaml"),
    ("get po --cluster demo", 2, 'there is no cluster "demo"', "`nsnet list` shows all; `nsnet up FILE` builds one"),
    ("--cluster demo get po", 2, 'there is no cluster "demo"', "`nsnet list` shows all; `nsnet up FILE` builds one"),
    ("get po --cluster UP", 2, '"UP" is not a cluster\'s name',
     "a DNS label of at most 20 characters: a-z, 0-9 and - inside"),
    ("get po -o xml", 2, "Invalid value for '-o' / '--output': 'xml' is not one of 'wide', 'json', 'yaml', 'name'",
     "`nsnet get --help` shows how it is used"),
    ("get po -l app=(", 2, '"app=(" is no label selector', "for example: app=web,tier!=db or 'zone in (a,b)'"),
    ("exec web", 2, "a command is missing", "`nsnet exec --help` shows how it is used"),
    ("apply", 2, "-f FILE is missing", "`nsnet apply --help` shows how it is used"),
    ("delete", 2, "either -f FILE or KIND NAME", "`nsnet delete --help` shows how it is used"),
    ("delete pod", 2, "pod: the name is missing", "write KIND NAME or KIND/NAME"),
    ("scale deploy --replicas 3", 2, "deploy: the name is missing", "write KIND/NAME or KIND NAME"),
    ("scale deploy/web --replicas -1", 2, "Invalid value for '--replicas': -1 is not in the range 0<=x<=100000",
     "`nsnet scale --help` shows how it is used"),
    ("scale deployd/web --replicas 1", 2, 'there is no kind "deployd" (did you mean deploy?)', "words are kubectl's"),
    ("label pod/web app", 2, '"app" is neither KEY=VALUE nor KEY-', "for example: label pod/web app=web old-"),
    ("verify --compare-modes --retry 1", 2, "--compare-modes asks everything and prints its own table",
     "leave the other options out"),
    ("capture x --size 1M", 2, "--size is about a file", "-w FILE, or leave --size out"),
    ("capture x --duration 1,5s", 2, 'Invalid value for \'--duration\': "1,5s" is no length of time: 60s, 2m, 1m30s',
     "`nsnet capture --help` shows how it is used"),
    ("fault add delay --for 0", 2, "--for: it ends after more than nothing, and within ten years",
     "as 30s, 5m or 1h"),
    ("down one --all", 2, "--all and a name contradict each other", "leave one out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "error", "hint"), WRONG, ids=[row[0][:40] for row in WRONG])
def test_wrong_words(nsnet: Any, words: str, code: int, error: str, hint: str) -> None:
    said = nsnet(words)
    assert said.out == ""
    assert said.err == f"error: {error}\n" + (f"hint: {hint}\n" if hint else "")
    assert said.code == code


NEEDS_ROOT = ["up x", "down", "apply -f x", "delete pod x", "scale deploy/x --replicas 1", "label pod/x a=b",
              "annotate pod/x a=b", "get po", "describe po x", "status", "list", "events", "logs", "rules node/x",
              "leases", "conntrack node/x", "exec x -- ls", "shell x", "verify", "trace x y", "capture x",
              "graph", "ui", "snapshot", "diff x", "explain svc/x", "policy show x", "fault clear",
              "lab check", "bundle", "agent --store etcd://x --machine a", "beside"]  # fmt: skip


@pytest.mark.parametrize("words", NEEDS_ROOT)
def test_without_root(nsnet: Any, words: str) -> None:
    verb = words.split(maxsplit=1)[0]
    said = nsnet(words, root=False)
    assert said.code == 5
    hint = f"run it with sudo: sudo nsnet {verb} …, or without root: nsnet --rootless {verb} …"
    assert said.err == f"error: `nsnet {verb}` needs root\nhint: {hint}\n"


def test_every_verb_needs_root_or_is_known_not_to() -> None:
    without = {"plan", "validate", "doctor", "completion", "version"}
    assert {words.split()[0] for words in NEEDS_ROOT} | without == set(cli.VERBS)


def test_doctor_without_root_tells_what_it_cannot_see(nsnet: Any) -> None:
    said = nsnet("doctor -o json", root=False)
    assert said.code == 5
    found = {item["name"]: item for item in json.loads(said.out)}
    assert [name for name, item in found.items() if item["state"] == "unknown"] == [
        "kernel features", "leftovers of clusters",
    ]  # fmt: skip
    assert found["root"]["state"] == "missing"
    assert found["kernel.pid_max"]["state"] == "ok"


def test_nothing_there_is_success_for_down(nsnet: Any) -> None:
    assert nsnet("down").out == "no cluster is up: nothing to remove\n"
    assert nsnet("down --all").out == "no cluster is up: nothing to remove\n"


def test_several_clusters_are_named(nsnet: Any, tmp_path: Path) -> None:
    for name in ("blue", "green"):
        (tmp_path / "state" / name).mkdir(parents=True)
    assert nsnet("get po").err == (
        "error: 2 clusters are up: blue, green\nhint: say which: --cluster NAME, or NSNET_CLUSTER=NAME\n"
    )


def test_the_cluster_is_said_before_or_after_the_verb_or_in_the_environment(
    nsnet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the verb wins over before it, and both over the environment."""
    monkeypatch.setenv("NSNET_CLUSTER", "three")
    assert '"three"' in nsnet("get po").err
    assert '"two"' in nsnet("--cluster two get po").err
    assert '"one"' in nsnet("--cluster two get po --cluster one").err


def test_a_group_does_not_put_the_environment_above_what_was_typed(nsnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_CLUSTER", "three")
    for words in ("fault clear", "fault list", "policy show"):
        assert '"three"' in nsnet(words).err
        assert '"two"' in nsnet(f"--cluster two {words}").err
        group, verb = words.split()
        assert '"one"' in nsnet(f"--cluster two {group} --cluster one {verb}").err


@pytest.mark.parametrize("group", ["fault", "lab", "policy"])
def test_a_group_without_a_verb_is_asked_for_its_help(nsnet: Any, group: str) -> None:
    said = nsnet(group)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: nsnet {group} [OPTIONS] COMMAND")


def commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Every verb with what it takes to type it, those of groups too."""
    for name in (*group.list_commands(ctx), *(cli.HIDDEN if group is cli.nsnet else ())):
        command = group.get_command(ctx, name)
        assert command
        if isinstance(command, click.Group):
            yield from ((f"{name} {further}", one) for further, one in commands(command, ctx))
        else:
            yield name, command


VALUES = {
    "integer range": "20",
    "integer": "20",
    "boolean": "1",
    "duration": "20",
}  # what a type takes; of a choice its first


def test_every_flag_of_every_verb_is_also_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its longest form, whatever the verb, the group and the parameter behind it are called."""
    root = click.Context(cli.nsnet, info_name="nsnet")
    seen = set()
    for words, command in commands(cli.nsnet, root):
        ctx = click.Context(command, info_name=words, parent=root)
        for option in (item for item in command.params if isinstance(item, click.Option)):
            flag = max(option.opts, key=len)
            seen.add(f"{words} {flag}")
            with monkeypatch.context() as patched:
                name = f"NSNET_{flag[2:].upper().replace('-', '_')}"
                value = (
                    option.type.choices[0]
                    if isinstance(option.type, click.Choice)
                    else VALUES.get(option.type.name, "x")
                )
                patched.setenv(name, str(value))
                found, source = option.consume_value(ctx, {})
            assert source is ParameterSource.ENVIRONMENT, (words, name)
            assert found in (str(value), [str(value)]), (words, name)
    assert {"down --all", "verify --list", "get --selector", "fault add --for", "lab solve --show",
            "policy show --port", "fault clear --cluster", "lab check --rootless"} <= seen  # fmt: skip


def test_a_flag_in_the_environment_is_held_to_the_same(nsnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_OUTPUT", "xml")
    assert "'xml' is not one of" in nsnet("get po").err
    monkeypatch.setenv("NSNET_TIMEOUT", "soon")
    assert '"soon" is no length of time' in nsnet("up x").err


def test_a_bug_is_one_line_and_a_file(nsnet: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise KeyError("what\na surprise")

    monkeypatch.setattr("nsnet.cli.context.clusters", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = nsnet("get po")
    assert said.code == NsnetError.exit_code
    found = re.fullmatch(r"error: this is a bug in nsnet: KeyError: .*\nhint: please report it with (\S+)\n", said.err)
    assert found
    assert "in broken" in Path(found[1]).read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    said = nsnet("get po")
    assert said.err.endswith("hint: please report it; its traceback could not be written: No such file or directory\n")
    assert said.code == NsnetError.exit_code


# --- verbs without root -----------------------------------------------------------------------------------------------

SMALL = """\
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec: {containers: [{name: a, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{port: 80}]}
"""


def test_validate(nsnet: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    said = nsnet("validate small.yaml", root=False)
    assert (said.code, said.err) == (0, "")
    assert said.out == "small: 1 Pod, 1 Service, 1 Cluster, all right\n"


def test_validate_reads_standard_input_once(nsnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SMALL.encode())))
    said = nsnet("validate - --cluster small", root=False)
    assert (said.code, said.err) == (0, "")
    assert said.out == "small: 1 Pod, 1 Service, 1 Cluster, all right\n"


def test_what_cannot_be_read_is_not_what_was_meant(tmp_path: Path) -> None:
    for name in ("small.yaml", "small.yml"):
        (tmp_path / name).write_text(SMALL)
    assert files._near(str(tmp_path / "small.yaml")) == f"did you mean {tmp_path}/small.yml?"
    (tmp_path / "small.yml").unlink()
    assert files._near(str(tmp_path / "small.yaml")) == ""


def test_validate_says_everything_that_is_wrong(nsnet: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        SMALL.replace("port: 80}]}\n", "prot: 80}]}\n").replace("name: a, lab", "name: A, lab")
    )
    said = nsnet("validate small.yaml", root=False)
    assert (said.code, said.out) == (2, "")
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1:3] for line in errors] == [
        ["small.yaml:3:18", 'Pod "A"'],
        ["small.yaml:9:37", 'Service "a"'],
        ["small.yaml:9:36", 'Service "a"'],
    ]
    assert "did you mean port?" in errors[1]


def test_what_control_refuses_has_its_place_in_the_file(nsnet: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL.replace("spec: {selector", "spec: {clusterIP: 192.0.2.1, selector"))
    said = nsnet("plan small.yaml", root=False)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith('error: small.yaml:9:19: Service "a": spec.clusterIP: ')


def test_plan_is_the_lines_a_person_would_type(nsnet: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    said = nsnet("plan small.yaml", root=False)
    assert said.code == 0
    lines = said.out.splitlines()
    assert "ip netns add small.node.node1" in lines
    assert "ip -n small.pod.default.a address add 10.244.1.2/24 dev eth0" in lines
    assert re.fullmatch(r"\d+ changes\n", said.err)
    assert nsnet("plan small.yaml", root=False).out == said.out


def test_plan_as_a_script_is_one_that_sh_can_read(nsnet: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    script = nsnet("plan small.yaml -o sh", root=False).out
    assert script.startswith("#!/bin/sh\nset -e\n")
    assert "FLANNEL_SUBNET=10.244.1.1/24" in script
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(nsnet: Any, shell: str) -> None:
    said = nsnet(f"completion {shell}")
    assert said.code == 0
    assert "_NSNET_COMPLETE" in said.out


def test_completion_knows_the_verbs() -> None:
    env = {**os.environ, "_NSNET_COMPLETE": "bash_complete", "COMP_WORDS": "nsnet ver", "COMP_CWORD": "1"}
    done = process(env=env)
    assert done.stdout.split() == ["plain,verify", "plain,version"]


# --- the pure parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_is_where_the_table_says(verb: str) -> None:
    module, _, name = cli.VERBS[verb].where.partition(":")
    command = getattr(import_module(f"nsnet.cli.{module}"), name)
    assert isinstance(command, click.Command)
    assert command.name == verb
    if verb not in {"version", "completion", "validate", "doctor", "list", "lab"}:
        assert "--cluster" in {option for param in command.params for option in param.opts}


AGES = [(0, "0s"), (119, "119s"), (120, "2m"), (184, "3m4s"), (900, "15m"), (3 * 3600, "3h"), (5 * 3600 + 420, "5h7m"),
        (30 * 3600, "30h"), (76 * 3600, "3d4h"), (20 * 86400, "20d"), (760 * 86400, "2y30d"),
        (9 * 365 * 86400, "9y")]  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), AGES)
def test_age(seconds: int, text: str) -> None:
    assert human(seconds) == text


def row(doc: dict[str, Any], *, wide: bool = False) -> str:
    born = (NOW - timedelta(minutes=5)).isoformat().replace("+00:00", "Z")
    metadata = {"name": "web", "namespace": "default", "creationTimestamp": born, **doc.pop("metadata", {})}
    obj = from_doc({"apiVersion": "v1", **doc, "metadata": metadata})
    kind = model.kind_of(obj)
    return "\n".join(table([header(kind, wide=wide), cells(obj, Look("demo", NOW), wide=wide)]))


READY = {"type": "Ready", "status": "True"}
CONTAINERS = {"containers": [{"name": "c", "image": "nginx"}, {"name": "d", "image": "redis"}]}
TABLES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "Pod", "spec": {**CONTAINERS, "nodeName": "n1"},
      "status": {"phase": "Running", "podIP": "10.244.1.2", "conditions": [READY]}}, """\
NAME   READY   STATUS    RESTARTS   AGE
web    2/2     Running   0          5m"""),
    ({"kind": "Pod", "spec": CONTAINERS, "status": {"phase": "Pending"}}, """\
NAME   READY   STATUS    RESTARTS   AGE
web    0/2     Pending   0          5m"""),
    ({"kind": "Pod", "spec": CONTAINERS, "metadata": {"deletionGracePeriodSeconds": 30},
      "status": {"phase": "Running"}}, """\
NAME   READY   STATUS        RESTARTS   AGE
web    0/2     Terminating   0          5m"""),
    ({"kind": "Service", "spec": {"type": "NodePort", "clusterIP": "10.96.0.7",
                                  "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}}, """\
NAME   TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)               AGE
web    NodePort   10.96.0.7    <none>        80:30080/TCP,53/UDP   5m"""),
    ({"kind": "Service", "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}, """\
NAME   TYPE           CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
web    LoadBalancer   10.96.0.7    <pending>     80/TCP    5m"""),
    ({"kind": "Service", "spec": {"type": "ExternalName", "externalName": "db.example"}}, """\
NAME   TYPE           CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
web    ExternalName   <none>       db.example    <none>    5m"""),
    ({"kind": "Endpoints", "subsets": [{"addresses": [{"ip": f"10.244.1.{n}"} for n in (2, 3, 4, 5)],
                                        "ports": [{"port": 80}]}]}, """\
NAME   ENDPOINTS                                               AGE
web    10.244.1.2:80,10.244.1.3:80,10.244.1.4:80 + 1 more...   5m"""),
    ({"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"replicas": 3, "template": {"spec": CONTAINERS}},
      "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}, """\
NAME   READY   UP-TO-DATE   AVAILABLE   AGE
web    2/3     3            2           5m"""),
    ({"kind": "Node", "metadata": {"namespace": ""}, "status": {"conditions": [READY]}}, """\
NAME   STATUS   ROLES    AGE   VERSION
web    Ready    <none>   5m    nsnet-0.1.0"""),
    ({"kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "spec": {"rules": [{"host": "a.example"}, {}]}}, """\
NAME   CLASS    HOSTS         ADDRESS   PORTS   AGE
web    <none>   a.example,*             80      5m"""),
    ({"kind": "Widget", "apiVersion": "example.com/v1"}, """\
NAME   AGE
web    5m"""),
]  # fmt: skip


@pytest.mark.parametrize(("doc", "text"), TABLES, ids=[f"{row[0]['kind']}-{n}" for n, row in enumerate(TABLES)])
def test_columns_are_kubectls(doc: dict[str, Any], text: str) -> None:
    assert row(dict(doc)) == text


def test_wide_shows_where_a_pod_is() -> None:
    doc = {
        "kind": "Pod",
        "spec": {**CONTAINERS, "nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "10.244.1.2"},
    }
    assert row(doc, wide=True).endswith("10.244.1.2   n1     <none>           <none>            demo.pod.default.web")


LABELS = {"app": "web", "tier": "front", "zone": "a"}
SELECTORS = [
    ("app=web", True), ("app==web", True), ("app!=web", False), ("app=db", False), ("none!=x", True),
    ("zone in (a,b)", True), ("zone notin (a,b)", False), ("tier", True), ("!tier", False), ("!none", True),
    ("app=web,zone in (a, b),!none", True), ("app=web,zone in (b)", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "matches"), SELECTORS)
def test_selectors(text: str, matches: bool) -> None:
    assert model.selects(selector(text), LABELS) is matches


def test_every_rule_has_its_sentence() -> None:
    """Each rule of kube-proxy and flannel in the golden texts is known to `nsnet rules`."""
    rules = {
        (found[1], found[2])
        for path in GOLDEN.rglob("*.txt")
        for line in path.read_text().splitlines()
        if (found := re.search(r"-A ((?:KUBE|FLANNEL)-\S+) (.+)", line))
    }
    assert len(rules) > 50
    assert sorted(f"{chain} {rule}" for chain, rule in rules if not sentence(chain, rule, {})) == []


def test_a_sentence_names_the_pod() -> None:
    rule = '-m comment --comment "t/web -> 10.244.1.2:80" -m statistic --mode random --probability 0.33333333349 -j X'
    assert sentence("KUBE-SVC-X", rule, {"10.244.1.2": "pod a"}) == (
        "1 in 3 of what is left to endpoint 10.244.1.2:80 (pod a)"
    )


CONNTRACK = """\
tcp      6 86395 ESTABLISHED src=10.244.1.2 dst=10.96.0.7 sport=41000 dport=80 \
src=10.244.2.2 dst=10.244.1.2 sport=8080 dport=41000 [ASSURED] mark=0 use=1
udp      17 28 src=10.244.1.2 dst=10.96.0.10 sport=5000 dport=53 [UNREPLIED] \
src=10.244.2.3 dst=10.244.1.2 sport=53 dport=5000 mark=0 use=1
icmp     1 29 src=10.244.1.2 dst=10.244.2.2 type=8 code=0 id=7 \
src=10.244.2.2 dst=10.244.1.2 type=0 code=0 id=7 mark=0 use=1
"""


def test_conntrack_names_the_service() -> None:
    assert list(flows(CONNTRACK, {"10.96.0.7:80": "default/web"})) == [
        ["tcp", "ESTABLISHED", "10.244.1.2:41000", "10.96.0.7:80 (default/web)", "10.244.2.2:8080", "10.244.1.2:41000"],
        ["udp", "-", "10.244.1.2:5000", "10.96.0.10:53", "10.244.2.3:53", "10.244.1.2:5000"],
        ["icmp", "-", "10.244.1.2", "10.244.2.2", "10.244.2.2", "10.244.1.2"],
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("1h", 3600), ("500ms", 0.5), ("1.5m", 90), ("20", 20), ("0.5", 0.5), ("0", 0)],
)
def test_a_length_of_time(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1 s", "s", "1d", "1s2"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no length of time"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("kind", [kind for kind in kinds.WORDS if kind in kinds.GROUPS])
def test_what_is_printed_as_a_name_is_a_word(kind: str) -> None:
    """`-o name` prints deployment.apps/web; kubectl takes the group behind every word of the kind."""
    for word in (kinds.resource(kind), *(f"{word}.{kinds.GROUPS[kind]}" for word in kinds.WORDS[kind])):
        assert kinds.kind_and_name(f"{word}/web", None) == (kind, "web")
    with pytest.raises(InputError, match="there is no kind"):
        kinds.kind_named(f"{kind}.example.com")


SECRET = """\
Name:                  db
Namespace:             default
Labels:                <none>
Annotations:           <none>
Type:                  Opaque
Data:                  ca:  4 bytes
                       password:  7 bytes
Events:                <none>"""


def test_a_secret_is_described_without_its_data() -> None:
    """As kubectl: not even in the annotation where `kubectl apply` keeps a copy."""
    doc = {"apiVersion": "v1", "kind": "Secret", "data": {"password": "aHVudGVyMg=="}, "stringData": {"ca": "abcd"},
           "metadata": {"name": "db", "namespace": "default", "annotations": {LAST_APPLIED: "hunter2"}}}  # fmt: skip
    assert "\n".join(describe.lines(Running("demo", {}), from_doc(doc))) == SECRET


def objects() -> model.Objects:
    pods = [("a", "n1", True, {}), ("b", "n2", False, {}), ("h", "n1", True, {"hostNetwork": True})]
    docs: list[dict[str, Any]] = [
        {"apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": "demo"}, "hosts": [{"name": "client"}]},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
         "spec": {"selector": {"app": "web"}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "none", "namespace": "default"},
         "spec": {"selector": {"app": "none"}}},
        *({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
           "spec": {"nodeName": node, "containers": [{"name": "c"}], **more},
           "status": {"conditions": [READY] if ready else []}} for name, node, ready, more in pods),
    ]  # fmt: skip
    return model.by_key([from_doc(doc) for doc in docs])


TARGETS = [
    ("a", "demo.pod.default.a", "a"), ("pod/a", "demo.pod.default.a", "a"), ("po/b", "demo.pod.default.b", "b"),
    ("h", "demo.node.n1", "n1"), ("node/n1", "demo.node.n1", "n1"), ("no/n1", "demo.node.n1", "n1"),
    ("host/client", "demo.host.client", "client"), ("svc/web", "demo.pod.default.a", "a"),
    ("pod/default/b", "demo.pod.default.b", "b"), ("svc/default/web", "demo.pod.default.a", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "netns", "hostname"), TARGETS)
def test_target(text: str, netns: str, hostname: str) -> None:
    """What says its namespace needs no -n, and is not changed by one."""
    found = target(objects(), text, "shop" if text.count("/") == 2 else "default")
    assert (found.netns, found.hostname) == (netns, hostname)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("aa", 'there is no Pod "aa" in namespace default (did you mean a?)'),
        ("node/n9", 'there is no node "n9"'),
        ("host/me", 'there is no host "me"'),
        ("cm/x", 'there is no ConfigMap "x" in namespace default'),
        ("what/x", 'there is no kind "what"'),
        ("what/default/x", 'there is no kind "what"'),
        ("pod/shop/a", 'there is no Pod "a" in namespace shop'),
        ("node/default/n1", 'there is no kind "node/default"'),
    ],
)
def test_target_that_is_not_there(text: str, error: str) -> None:
    with pytest.raises(InputError) as said:
        target(objects(), text)
    assert str(said.value) == error


def test_a_service_without_a_ready_pod_is_no_target() -> None:
    with pytest.raises(NotReachedError, match="service/none has no ready pod"):
        target(objects(), "svc/none")


def test_a_container_must_be_one_of_the_pods() -> None:
    assert target(objects(), "a", container="c").netns == "demo.pod.default.a"
    with pytest.raises(InputError, match='pod a has no container "x"'):
        target(objects(), "a", container="x")
