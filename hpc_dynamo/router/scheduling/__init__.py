"""Selection of workers for a request: policy, admission limits and the request queue."""
