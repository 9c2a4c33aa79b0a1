"""The verbs, each with a plan where it changes something. They join store and components."""
