"""Which stages, on which workers, with which codecs: what a run will take, before it is run."""
