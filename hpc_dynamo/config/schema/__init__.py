"""Schema of the configuration: frozen dataclasses whose fields carry help, unit and bounds.

    config.py     the whole configuration, `model` and `models`
    workload.py   `batch`, `serve` and `route`
    topology.py   number and shape of the workers
    engine.py     the engine, its options and its container
    cluster.py    nodes, Slurm, bootstrap
    router.py     choice of a worker
    planner.py    role changes, scale-out, job handover
    simulate.py   `hpc-dynamo simulate`
    setting.py    metadata of a field
    describe.py   texts about a field

Defaults here hold if no file in `conf/` sets the field. `conf/config.yaml` selects the files of a
run, such as `topology=disaggregated`. `None` means that the value is derived.
"""
