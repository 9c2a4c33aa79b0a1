"""The command line: wiring and rendering over `ops`."""

import gc

# Before the imports that follow: starting up makes some hundred thousand objects and no garbage.
gc.set_threshold(50_000, 20, 100)
