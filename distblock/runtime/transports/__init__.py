"""How activations get from one worker to the next: `Outbox` at the sender, `Inbox` at the receiver.

Whatever a call hands out goes into the object store, by a reference that the driver owns: it outlives both workers, so
whoever takes over from one of them finds its inputs there. That is the *object store* transport.

From node to node the store is slow: it looks for the object, asks its node for it, and copies it in pieces from store
to store by way of two further processes. So a sender whose receiver is on another node also keeps what it has handed
out, and offers it; the receiver fetches it over a connection from *worker to worker*, into its own memory. An offer
promises nothing: whoever cannot have it so, since the sender has died, has let go of it or cannot be reached, takes
the reference instead, and nobody has to go back to a checkpoint.
"""
