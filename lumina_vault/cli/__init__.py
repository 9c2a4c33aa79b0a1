"""The command line: wiring and rendering over `ops`."""
