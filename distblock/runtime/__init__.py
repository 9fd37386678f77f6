"""The stages on Ray: actors, placement, and activations through the object store. The only package that uses Ray."""
