"""Local tritonservers for a release: `privdfs-serve RELEASE`, and `serve` for programs.

Each server of the release gets a tritonserver process of its own, as if it belonged to another party:

- It serves a private copy of the files that its manifest lists, made from the very bytes that were checked. What else
  lies in the folder is never looked at, and nothing is ever written there.
- It listens on 127.0.0.1 only, speaks gRPC, and HTTP where that is asked for, loads nothing but what it started with,
  completes no configuration, keeps no cache and no trace. The calls that clients do not need (shared memory, model
  repository, statistics, trace, logging) ask for a secret that only the program that started the servers knows.
- Where that is asked for, an nginx of its own stands in front of it. Only that one may then ask it over HTTP.
- It ends with the process that asked for it, however that process ends.

| module | does |
| --- | --- |
| `cli.py` | the command line |
| `local.py` | checks a release, starts what it needs, waits until it is ready |
| `tritonserver.py` | finds Triton, hardens its command line, asks whether it is ready |
| `authority.py` | signs the certificates of one run |
| `gateway.py`, `nginx.py` | start an nginx in front of each server; fill in `deploy/nginx.conf.template` |
| `processes.py`, `_keeper.py` | start and end a process, with all that belongs to it |
"""

from privdfs_export.serve.gateway import Gateway, RunningGateway, find_nginx
from privdfs_export.serve.local import gateways_before, serve, serve_gateways, serve_measured, serve_release, start_at
from privdfs_export.serve.processes import kill
from privdfs_export.serve.tritonserver import (
    ADMIN_HEADER,
    HTTP_ADMIN_HEADER,
    LOOPBACK_OPTIONS,
    RunningServer,
    find_tritonserver,
)

__all__ = [
    "ADMIN_HEADER",
    "HTTP_ADMIN_HEADER",
    "LOOPBACK_OPTIONS",
    "Gateway",
    "RunningGateway",
    "RunningServer",
    "find_nginx",
    "find_tritonserver",
    "gateways_before",
    "kill",
    "serve",
    "serve_gateways",
    "serve_measured",
    "serve_release",
    "start_at",
]
