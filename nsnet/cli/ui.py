"""`ui`: the live cluster as a page in a browser, until Ctrl-C."""

import threading
from contextlib import nullcontext, suppress

import click

from nsnet.cli import options
from nsnet.cli.context import running
from nsnet.cli.output import note, out
from nsnet.errors import MachineError


@options.verb("ui")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Default: a free one.")
@click.option("--no-open", is_flag=True, help="Print the address and open no browser.")
@options.cluster
def ui(port: int, no_open: bool, cluster: str | None) -> int:
    """Show the live cluster as a page: racks, nodes, pods, Services; drift, faults, events; and traces.

    Click two ends, and see the packet's way. The page is served on 127.0.0.1 for whoever has the address that is
    printed; from another machine: ssh -L 8000:127.0.0.1:PORT. Ctrl-C ends it.
    """
    from nsnet.cli.page.browser import opened
    from nsnet.cli.page.feed import Feed
    from nsnet.cli.page.server import Server
    from nsnet.cli.page.watch import watch

    name = running("ui", cluster).cluster
    feed = Feed()
    try:
        server = Server(name, feed, port)
    except OSError as error:
        raise MachineError(f"port {port} cannot be listened on: {error.strerror}", "leave out --port") from error
    threading.Thread(target=watch, args=(name, feed), daemon=True).start()
    out(server.url)
    note(f"cluster {name} is shown there until Ctrl-C")
    with suppress(KeyboardInterrupt), server, nullcontext() if no_open else opened(server.url):
        server.serve_forever(poll_interval=60)
    return 0
