"""How an activation is encoded for a hop: tensors to arrays that the object store takes without a copy, and back."""
