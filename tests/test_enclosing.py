"""The allocation around us, by `scontrol --details show job` of Slurm 22.05."""

from hpc_dynamo.launch.enclosing import Allocation, parsed

SHOWN = """\
JobId=7 JobName=interactive
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=n[1-3]
   NumNodes=3 NumCPUs=34 NumTasks=3 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:a100:10
     Nodes=n[1-2] CPU_IDs=0-15,32 Mem=65536 GRES=gpu:a100:4(IDX:0-3)
     Nodes=n3 CPU_IDs=0 Mem=32768 GRES=gpu:a100:1(IDX:0),gpu:v100:1(IDX:1),nvme:1
   MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0
"""


def test_smallest_node_counts() -> None:
    assert parsed(SHOWN) == Allocation(cpus=1, memory_gb=32.0, gpus=2)
    without = SHOWN.replace("     Nodes=n3", "   Not=n3").replace("GRES=gpu:a100:4", "GRES=gpu:4")
    assert parsed(without) == Allocation(cpus=17, memory_gb=64.0, gpus=4)


def test_nothing_is_known_of_other_answers() -> None:
    assert parsed("") == Allocation()
    assert parsed(SHOWN + SHOWN) == Allocation(), "a heterogeneous job"
