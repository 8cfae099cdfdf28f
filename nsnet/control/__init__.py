"""Pure controllers: objects in, the same objects with everything that follows from them out.

`complete` is level-triggered: it looks at the objects as they are, not at what changed, and may be called at any time;
a second call changes nothing. Every choice (an address, a port, a pod's name) is a function of names with probing, and
once made it is in the object and stays. There is no clock and no kernel here: both are `Facts`.

    admit     what the store shall hold after `up` or `apply`: the files, and what was allocated before
    remove    … after `delete`
    complete  the controllers, in the order in which one needs the other's work

Answers are remembered per object (`_kept`, `_judged` …) only to be found again by `is`; the memory may go at any time.
"""

from typing import TYPE_CHECKING

from nsnet import ondemand

if TYPE_CHECKING:
    from nsnet.control.admission import admit, remove
    from nsnet.control.completing import complete
    from nsnet.control.facts import Facts

__all__ = ["Facts", "admit", "complete", "remove"]

__getattr__ = ondemand.attributes(
    __name__, {"Facts": "facts", "admit": "admission", "complete": "completing", "remove": "admission"}
)
