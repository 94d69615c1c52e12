"""What only a GPU can tell, measured in the minutes that one is at hand (`python -m benchmarks.gpu`).

`items` lists the measurements, the most valuable first; `__main__` hands them to a `worker` process until the time is up, each leaving
one JSON file; `tables` sets them beside the estimates of the same settings. `models` makes weights on the card: nothing is downloaded.
"""
