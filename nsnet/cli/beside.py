"""`beside`: what nsnet on another machine starts here by ssh, to ask this one's kernel. Nobody types it."""

import sys

from nsnet.cli import options
from nsnet.cli.context import chosen, need_root
from nsnet.kernel.beside import serve
from nsnet.kernel.remote import VERB, Frames


@options.verb(VERB)
@options.cluster
def beside(cluster: str | None) -> None:
    """Answer what another machine of the cluster asks, by stdin and stdout, until it goes."""
    need_root(VERB)
    serve(chosen(cluster), Frames(sys.stdin.fileno(), sys.stdout.fileno()))
