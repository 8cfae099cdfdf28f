"""kubedns: the cluster's DNS server, as a program of its own. Run as `python -m nsnet.programs.kubedns CONFIG.json`.

`config` is what the file says. `zone` knows which records a name has, with `coredns` and `skydns` for what the two
implementations find under it, and `values`, `names` for what these have in common; all of that is pure. `wire` turns
bytes into questions and records into bytes (dnspython), `cache` keeps replies as bytes, `upstream` asks other servers,
`answers` puts these together. `server` has the sockets, `pages` what is said over HTTP, `__main__` the reload.
"""
