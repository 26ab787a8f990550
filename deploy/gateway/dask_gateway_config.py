"""A dask-gateway server for one machine or one lab server: dask-gateway-server -f dask_gateway_config.py.

Install it beside daskdecode: pip install "daskdecode[gateway]" "dask-gateway-server[local]"
"""

import os
import sys

c = get_config()  # noqa: F821  # dask-gateway-server gives it

# Clusters are processes of the user who runs the server, whoever asks for them: for one user, or for a lab that trusts itself.
# For many users take the backend of the batch system or of Kubernetes (see the server's own documentation).
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = os.environ.get("GATEWAY_API", "127.0.0.1:0")
c.Proxy.address = os.environ.get("GATEWAY_ADDRESS", "127.0.0.1:8000")

# Everyone who knows the password; without one, everyone who reaches the port.
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
if password := os.environ.get("GATEWAY_PASSWORD"):
    c.SimpleAuthenticator.password = password

# As of today: dask-scheduler and dask-worker, which the server would start, have gone.
dask = [sys.executable, "-m", "dask"]
c.ClusterConfig.scheduler_cmd = [*dask, "scheduler"]
c.ClusterConfig.worker_cmd = [*dask, "worker"]
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.worker_memory = "2 G"
c.ClusterConfig.cluster_max_workers = 8
c.ClusterConfig.idle_timeout = 1800  # a cluster that was forgotten ends
