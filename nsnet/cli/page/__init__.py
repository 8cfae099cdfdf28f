"""The page of `nsnet ui`: the live cluster in a browser.

    store ─wakes→ `watch.py` ─documents→ `feed.py` ─server-sent events→ the page (nsnet/data/page)
                      │ now and then a look at the kernel                  │ two ends clicked
                      ▼                                                    ▼
                 drift, health                              `asked.py`: the packet's way, as `trace` says it

`server.py` is the only door: the standard library's HTTP server on loopback, a thread per connection (they wait for the
store and the kernel, as every verb does). What it serves is five files of the package and those documents.
"""
