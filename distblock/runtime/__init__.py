"""The stages on Ray: actors, placement, how activations get to the next one. The only package that uses Ray."""
