"""Labs as data: every file is whole, and fits its topology; and what is pure about judging a repair."""

import pytest
from msgspec.structs import replace

from nsnet import faults, labs, manifests, model
from nsnet.cli import lab
from nsnet.cli.plan import wanted
from nsnet.cli.target import target
from nsnet.errors import InputError, ObjectError
from nsnet.labs import Lab, State, Traffic
from nsnet.manifests import Source
from nsnet.model import Fault, Key

LABS = lab.every()
NAMES = [one.name for one in LABS]


def test_there_are_enough_and_of_every_level() -> None:
    assert len(LABS) >= 15
    assert {one.level for one in LABS} == {1, 2, 3}


@pytest.mark.parametrize("one", LABS, ids=NAMES)
def test_a_lab_fits_its_topology(one: Lab) -> None:
    objects = wanted(lab.loaded(one), {})
    broken = {**objects, **labs.damage(one, objects)}
    for fault in model.of(broken, Fault):
        faults.check(fault, broken)
        assert fault.spec.leave  # done once, and never again
    assert one.held or one.may_change
    steps = [step for way in (*one.solutions, *one.wrong) for step in way.steps]
    for step in (*steps, *one.begin, *one.undo, *(state.step for state in one.state)):
        assert step.where or step.argv[0] == "nsnet"
        for word in step.where:
            for place in labs.places(word, objects):
                kind, *rest = place.split("/")
                target(objects, f"{kind}/{rest[-1]}", rest[0] if len(rest) == 2 else "default")


@pytest.mark.parametrize("one", LABS, ids=NAMES)
def test_a_lab_is_told_in_five_lines_and_three_hints(one: Lab) -> None:
    assert len(one.story.splitlines()) <= 5
    assert len(one.hints) == 3
    assert all(map(str.strip, (*one.hints, one.title, one.lesson)))
    assert len({item.name for item in one.traffic}) == len(one.traffic)
    assert len(one.solutions) > 1, "there is more than one way; the check has to take another one than ours, too"
    assert one.wrong
    assert all(way.because for way in one.wrong)


WRONG_FILES = [
    ("kind: Pod", "x.yaml is no lab"),
    ("just text", "x.yaml is no lab"),
    ("apiVersion: nsnet/v1\nkind: Lab\ntitel: a", "x.yaml is no lab: Object contains unknown field `titel`"),
    ("apiVersion: nsnet/v1\nkind: Lab\ntitle: [", "x.yaml is no lab: while parsing"),
]


@pytest.mark.parametrize(("text", "said"), WRONG_FILES)
def test_what_is_no_lab(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        labs.parsed(text, "x")


STATES = [
    ("said", State("n", "x", "node/a", says="^1$"), 0, "0\n1\n", True),
    ("not said", State("n", "x", "node/a", says="^1$"), 0, "11\n", False),
    ("never said", State("n", "x", "node/a", never="DROP"), 0, "-P FORWARD ACCEPT", True),
    ("said what it never should", State("n", "x", "node/a", never="DROP"), 0, "-P FORWARD DROP", False),
    ("failed", State("n", "x", "node/a"), 2, "", False),
]


@pytest.mark.parametrize(("state", "code", "said", "good"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_state(state: State, code: int, said: str, good: bool) -> None:
    name, found, why = state.judge(code, said)
    assert (name, found, bool(why)) == ("n", good, not good)


def test_a_question_asked_often_is_one_result() -> None:
    asked = (Traffic("many", "http://web/", "pod/a", times=3), Traffic("one", "http://web/", "pod/b"))
    answers = [("many", True, ""), ("many", False, "no answer"), ("many", True, ""), ("one", True, "")]
    assert labs.counted(replace(LABS[0], traffic=asked), answers) == [
        ("many", False, "no answer, 1 of 3 times"),
        ("one", True, ""),
    ]


def test_a_lab_is_set_up_when_all_of_it_is_broken() -> None:
    """An interrupted start leaves the built cluster, without the count of hints that ends it."""
    start = wanted(lab.loaded(LABS[0]), {})
    assert labs.running(model.cluster_of(start)) == (LABS[0].name, 0)
    assert not labs.is_set_up(model.cluster_of(start))
    assert labs.is_set_up(model.cluster_of(labs.hinted(start, 0)))


def test_a_pod_less_or_another_one_is_no_repair() -> None:
    one = replace(next(one for one in LABS if one.name == "hairpin"), may_change=("service/web",))
    start = wanted(lab.loaded(one), {})
    key, service = Key("Pod", "default", "b"), Key("Service", "default", "web")
    pod, svc = start[key], start[service]
    assert isinstance(pod, model.Pod)
    assert isinstance(svc, model.Service)
    another = replace(pod, metadata=replace(pod.metadata, labels={}))
    changed = {**start, service: replace(svc, spec=replace(svc.spec, selector={}))}
    assert [good for _, good, _ in labs.as_it_was(one, start, changed)] == [True]
    for now, said in (
        ({name: obj for name, obj in start.items() if name != key}, "Pod default/b is gone"),
        ({**start, key: another}, "Pod default/b is another now"),
    ):
        assert [(good, why) for _, good, why in labs.as_it_was(one, start, now)] == [(False, said)]


def test_a_wrong_object_of_a_labs_own_is_found_in_its_own_file() -> None:
    topology = manifests.load([Source("small.yaml", b"{apiVersion: nsnet/v1, kind: Cluster}")], labs.CLUSTER)
    own = manifests.load(
        [Source("lab.yaml", b"\n{apiVersion: v1, kind: Namespace, metadata: {name: x}}")], labs.CLUSTER
    )
    loaded = labs.built(LABS[0], topology, own)
    error = manifests.located(ObjectError(Key("Namespace", "", "x"), "metadata.name", "is wrong", "mend it"), loaded)
    assert str(error).startswith("lab.yaml:2:")


@pytest.mark.parametrize(("said", "given"), [("2", 2), ("", 0), ("many", 0), ("-1", 0)])
def test_hints_that_somebody_else_counted(said: str, given: int) -> None:
    meta = model.ObjectMeta(name="lab", annotations={model.LAB: "x", labs.HINTS: said})
    assert labs.running(model.Cluster(meta)) == ("x", given)
