"""One module for each kind of component, behind the protocols of `base`. They know nothing of the store."""
