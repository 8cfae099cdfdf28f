"""Keeps the feed true: woken by the store, and now and then a look at the kernel, as long as somebody reads.

A look is what `nsnet status` does. It must not cost more than a tenth of a processor (the controller's own rule): after
one that took 0.3 s, the next comes 3 s later at the earliest.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from itertools import filterfalse

import msgspec

from nsnet import model, names
from nsnet.cli.context import Running
from nsnet.cli.graph import picture
from nsnet.cli.health import health
from nsnet.cli.page.feed import Feed
from nsnet.errors import NsnetError
from nsnet.faults import CATALOGUE
from nsnet.model import Event, Objects
from nsnet.store import opening
from nsnet.store.objects import load_objects, refresh

CALM, STIRRED = 5.0, 0.3  # s between looks; after the store has changed
SHARE = 0.1  # of one processor
POLL = 1.0  # s; a wake-up of the store may get lost, and a cluster that is gone may come back
DRIFT = 200  # lines


def watch(cluster: str, feed: Feed) -> None:
    """Never returns; a cluster that is gone is said, and waited for."""
    while True:
        feed.need_reader()
        try:
            why = _follow(cluster, feed)
        except NsnetError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - one bad look must not leave pages with an old picture for ever
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        feed.put("there", {"cluster": cluster, "there": False, "why": why})
        time.sleep(POLL)


def _follow(cluster: str, feed: Feed) -> str:
    """Until the cluster is gone. Raises NsnetError where the store or the kernel cannot be read."""
    with closing(opening.open_store(cluster)) as store:
        objects: Objects
        objects, revision = load_objects(store)
        drawn, looks = -1, _Looks(feed)
        while not store.gone() and names.run_dir(cluster).is_dir():
            if revision != drawn:
                _draw(cluster, objects, revision, feed)
                looks.stirred = drawn != -1
                drawn = revision
            looks.look(Running(cluster, objects, revision))
            feed.need_reader()
            store.wait(min(POLL, looks.left))
            objects, revision = refresh(store, objects, revision)
    return f"cluster {cluster} is gone"


def _draw(cluster: str, objects: Objects, revision: int, feed: Feed) -> None:
    feed.put("picture", picture(objects))
    feed.put("events", list(_events(objects)))
    feed.put("faults", list(_faults(objects)))
    feed.put("there", {"cluster": cluster, "there": True, "revision": revision})


def _events(objects: Objects) -> Iterator[dict[str, object]]:
    for event in model.of(objects, Event):
        about = event.involvedObject
        where = "" if about.namespace in {"", "default"} else f"{about.namespace}/"
        name = f"{about.kind.lower()}/{where}{about.name}"
        yield {"about": name, "type": event.type, "reason": event.reason, "message": event.message}


def _faults(objects: Objects) -> Iterator[dict[str, object]]:
    for fault in filterfalse(model.in_lab, model.of(objects, model.Fault)):
        spec, kind = fault.spec, CATALOGUE.get(fault.spec.fault)
        words = f"{kind.title}. {kind.symptom}" if kind else ""
        yield {"name": fault.metadata.name, "where": [*spec.on, *spec.to], "words": words, "until": spec.until}


class _Looks:
    """When to look at the kernel again, and the look."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._last, self._cost, self._readers = 0.0, 0.0, 0
        self.stirred = False

    @property
    def left(self) -> float:
        """Seconds until the next look is due. A reader who has just come is shown the present."""
        came = self._feed.joined != self._readers
        wanted = 0.0 if came else STIRRED if self.stirred else CALM
        return max(0.0, self._last + max(wanted, self._cost / SHARE) - time.monotonic()) if self._last else 0.0

    def look(self, now: Running) -> None:
        if self.left:
            return
        self._readers, self.stirred = self._feed.joined, False
        began = time.thread_time()
        found = health(now)
        self._cost = time.thread_time() - began
        self._last = time.monotonic()
        shown = {**msgspec.to_builtins(found), "healthy": found.healthy, "drifted": len(found.drift)}
        self._feed.put("health", {**shown, "drift": found.drift[:DRIFT]})
