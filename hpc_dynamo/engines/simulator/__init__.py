"""The simulator (`hpc_dynamo.simulator`) as an engine: its `adapter`."""
