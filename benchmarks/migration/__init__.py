"""Cost of stream migration without faults."""
