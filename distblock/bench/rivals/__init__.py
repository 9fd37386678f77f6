"""What else a user could train the same network with, in processes of its own: torch's pipelines, DDP, a plain loop.

All start from the weights that distblock starts from, take the same batches, and step with the same optimizer. A rival
counts only if its losses are those of plain training (`expected`): a pipeline that leaves something out is fast.
"""
