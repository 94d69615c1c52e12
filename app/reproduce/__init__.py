"""The command and the Python code that make again what a page shows: text out of settings, nothing drawn."""
