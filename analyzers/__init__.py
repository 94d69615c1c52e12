"""Questions asked of a model: data frames and dataclasses out, no user interface."""
