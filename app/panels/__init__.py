"""Parts of pages, a file each: `show` draws one, the files named `*_inputs` ask for settings. Pages import panels, never back."""
