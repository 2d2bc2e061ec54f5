"""Facts of a healthy node for tests of the doctor."""

from hpc_dynamo.doctor.records import NodeFacts

HERE = "127.0.0.1"
HOSTS = ["a", "b", "c"]
HEALTHY = NodeFacts(host="n1", shm_free=8 << 30, tmp_free=8 << 30, nofile=65536, memlock=-1)
