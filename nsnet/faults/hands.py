"""No fault by itself: places whose kernel is left alone, so that what is done there by hand stays."""

from collections.abc import Iterable

from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind
from nsnet.state import Hold


def _left_alone(_: Draft, site: Site) -> Iterable[Hold]:
    yield from ((netns, ()) for netns in site.on())


KINDS = (
    Kind(
        name="hands-off",
        title="Nobody puts anything right",
        symptom="Nothing at first. Whatever is changed by hand there stays, and nothing new is written.",
        cause="kube-proxy, flanneld and the CNI plugins do nothing there: its kernel is left alone.",
        detect=("nsnet fault list",),
        mend=("nsnet fault clear NAME   # everything there is put right",),
        places="any",
        everywhere=True,
        hold=_left_alone,
    ),
)
