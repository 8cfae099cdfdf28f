"""YAML and JSON → objects; an error names file, line, field and the nearest right spelling.

    bytes ─reading→ plain values ─loading→ objects            reading: libyaml's events, limits, places
                        │                                     scalars: what `no` and `0644` mean to kubectl
                        ├─schema: fields and their types, from Kubernetes' own OpenAPI models and from `model`
                        └─kinds, topology: the values of one object (workloads, services, policies, the Cluster),
                          in terms of forms (names, labels, ports, addresses)

A check says where it found something wrong as a path (`spec.ports[0].port`); only then is the file read again with the
places of all values, so a good file costs nothing for them. What needs more than one object is `control`'s to refuse;
`located` gives its errors their place in the file.
"""

from nsnet.manifests.loading import Loaded, Origin, load, located, problems
from nsnet.manifests.reading import MAX_BYTES, Source

__all__ = ["MAX_BYTES", "Loaded", "Origin", "Source", "load", "located", "problems"]
